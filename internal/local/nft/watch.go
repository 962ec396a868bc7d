package nft

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Messages and attributes of a change that the kernel tells of (Linux,
// include/uapi/linux/netfilter/nf_tables.h).
const (
	groupChanges = 7 // NFNLGRP_NFTABLES
	// newGeneration ends the messages of one transaction.
	newGeneration = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWGEN

	attributeTable = 1 // of every message about something in a table
	generationTask = 2
	generationName = 3
)

// Watch calls changed whenever another process than this one has changed the
// table, with that one's name, until ctx ends.
func Watch(ctx context.Context, table string, changed func(by string)) error {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	defer func() { _ = conn.Close() }()
	if err := conn.JoinGroup(groupChanges); err != nil {
		return fmt.Errorf("watch nftables: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	t := transaction{table: table}
	for {
		messages, err := conn.Receive()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS):
			changed("another process") // what was lost nobody knows
			continue
		case err != nil:
			return fmt.Errorf("watch nftables: %w", err)
		}
		for _, m := range messages {
			if by, foreign := t.take(m); foreign {
				changed(by)
			}
		}
	}
}

// transaction follows the messages of one.
type transaction struct {
	table   string
	touches bool // the table
}

// take reads a message. foreign says that it ends a transaction of another
// process that touched the table.
func (t *transaction) take(m netlink.Message) (by string, foreign bool) {
	if len(m.Data) < 4 {
		return "", false
	}
	d, err := netlink.NewAttributeDecoder(m.Data[4:])
	if err != nil {
		return "", false
	}
	task := uint32(0)
	ends := uint16(m.Header.Type) == newGeneration
	for d.Next() {
		switch {
		case !ends && d.Type() == attributeTable:
			t.touches = t.touches || text(d.Bytes()) == t.table
		case ends && d.Type() == generationTask && len(d.Bytes()) == 4:
			task = binary.BigEndian.Uint32(d.Bytes())
		case ends && d.Type() == generationName:
			by = text(d.Bytes())
		}
	}
	if !ends || !t.touches {
		return "", false
	}
	t.touches = false
	return by, !own(task)
}

// text is a string that ends with a zero.
func text(b []byte) string {
	b, _, _ = bytes.Cut(b, []byte{0})
	return string(b)
}

// own says whether a task is a thread of this process.
func own(task uint32) bool {
	_, err := os.Stat("/proc/self/task/" + strconv.FormatUint(uint64(task), 10))
	return err == nil
}
