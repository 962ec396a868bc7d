// Package gateway is the data plane: a process without privileges that carries
// all traffic of one machine by one table, kiln.Traffic. It serves HTTP/1.1,
// HTTP/2 and TCP on sockets that it was given, answers the environments' names,
// and counts what it carries. The control plane and the keeper may be away: the
// last table is on disk, and is served from the start.
//
// A table is compiled once and swapped as a whole; requests never wait for it.
// HTTP/1.1 between client and instance runs in one goroutine per client
// connection, on buffers that are used again; HTTP/2 on either side goes
// through net/http's types.
//
// The package starts no instances, opens no listening sockets, and trusts
// nothing that a client or an instance says.
package gateway
