package debian

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"sync/atomic"
	"time"

	"github.com/kilnproject/kiln"
	"golang.org/x/sync/errgroup"
)

const (
	parallel = 6       // downloads at one time
	maxDeb   = 4 << 30 // bytes of one package

	// tellEvery is how often downloads are news: each of hundreds is not.
	tellEvery = time.Second
)

func newClient() *http.Client {
	t := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		MaxConnsPerHost:       parallel,
		MaxIdleConnsPerHost:   parallel,
		TLSHandshakeTimeout:   15 * time.Second,
		ResponseHeaderTimeout: 60 * time.Second,
		IdleConnTimeout:       30 * time.Second,
	}
	return &http.Client{Transport: t, CheckRedirect: func(r *http.Request, via []*http.Request) error {
		if len(via) >= 5 || r.URL.Scheme != "http" && r.URL.Scheme != "https" {
			return errors.New("redirected too often, or elsewhere")
		}
		return nil
	}}
}

// fetch brings the packages into the store that it lacks or has damaged, each
// checked against its digest.
func (b *Builder) fetch(ctx context.Context, packages []kiln.LockedPackage, progress func(kiln.Progress)) error {
	var missing []kiln.LockedPackage
	var total int64
	for _, p := range packages {
		err := b.opts.Store.Verify(ctx, p.Digest)
		if err == nil {
			continue
		}
		if !errors.Is(err, kiln.ErrNotFound) {
			return fmt.Errorf("look for package %s: %w", p.Name, err)
		}
		missing = append(missing, p)
		total += p.Size
	}
	if len(missing) == 0 {
		return nil
	}
	step := fmt.Sprintf("download %d packages", len(missing))
	start := time.Now()
	var got, told atomic.Int64
	g, each := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for _, p := range missing {
		g.Go(func() error {
			if err := b.download(each, p); err != nil {
				return err
			}
			sum, last, passed := got.Add(p.Size), told.Load(), int64(time.Since(start))
			if passed-last >= int64(tellEvery) && told.CompareAndSwap(last, passed) {
				progress(kiln.Progress{Step: step, Message: fmt.Sprintf("%.1f of %.1f MB", float64(sum)/1e6, float64(total)/1e6)})
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	progress(kiln.Progress{Step: step, Done: true, Took: time.Since(start)})
	return nil
}

func (b *Builder) download(ctx context.Context, p kiln.LockedPackage) error {
	if p.Size < 0 || p.Size > maxDeb {
		return kiln.Errorf(kiln.CodeInvalid, "", "package %s has a size of %d bytes", p.Name, p.Size)
	}
	if p.URL == "" { // of what is baked again: where it came from is no part of what it was made from
		return kiln.Errorf(kiln.CodeNotFound, "Restore the store from a backup; a newer release bakes from what the archive has now.",
			"the file of package %s %s, %s, is not in the store any more, or was damaged", p.Name, p.Version, p.Digest)
	}
	var last error
	for range 3 {
		r, err := b.open(ctx, p.URL)
		if err == nil {
			_, _, err = b.opts.Store.Put(ctx, io.LimitReader(r, p.Size+1), p.Digest)
			err = errors.Join(err, r.Close())
		}
		if err == nil {
			return nil
		}
		if last = err; ctx.Err() != nil || errors.Is(err, kiln.ErrNotFound) || errors.Is(err, kiln.ErrNoRoom) {
			break
		}
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if errors.Is(last, kiln.ErrNoRoom) {
		return last
	}
	return kiln.Errorf(kiln.CodeUnavailable, "Resolve the packages anew: remove the image's entry from kiln.lock.",
		"package %s %s is neither in the store nor at %s: %w", p.Name, p.Version, p.URL, last)
}

// get fetches a small file.
func (b *Builder) get(ctx context.Context, at string, limit int64) ([]byte, error) {
	r, err := b.open(ctx, at)
	if err != nil {
		return nil, err
	}
	defer func() { _ = r.Close() }()
	raw, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, fmt.Errorf("get %s: %w", at, err)
	}
	if int64(len(raw)) > limit {
		return nil, fmt.Errorf("get %s: it is larger than %d bytes", at, limit)
	}
	return raw, nil
}

// open opens an http, https or file URL.
func (b *Builder) open(ctx context.Context, at string) (io.ReadCloser, error) {
	u, err := url.Parse(at)
	if err != nil {
		return nil, fmt.Errorf("get %s: %w", at, err)
	}
	switch u.Scheme {
	case "file":
		return openRegular(u.Path)
	case "http", "https":
	default:
		return nil, fmt.Errorf("get %s: only http, https and file are known", at)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at, nil)
	if err != nil {
		return nil, fmt.Errorf("get %s: %w", at, err)
	}
	req.Header.Set("User-Agent", "kiln")
	resp, err := b.opts.Client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("get %s: %w", at, err)
	}
	if resp.StatusCode != http.StatusOK {
		_ = resp.Body.Close()
		if resp.StatusCode == http.StatusNotFound || resp.StatusCode == http.StatusGone {
			return nil, kiln.Errorf(kiln.CodeNotFound, "", "get %s: %s", at, resp.Status)
		}
		return nil, fmt.Errorf("get %s: %s", at, resp.Status)
	}
	return resp.Body, nil
}

func openRegular(path string) (io.ReadCloser, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a file", path)
	}
	return os.Open(path)
}
