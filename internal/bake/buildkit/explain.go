package buildkit

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"

	"github.com/kilnproject/kiln"
	gatewaypb "github.com/moby/buildkit/frontend/gateway/pb"
	solvererrdefs "github.com/moby/buildkit/solver/errdefs"
	"golang.org/x/sys/unix"
)

// explain turns a failed build's error into one that a user can act on.
func explain(ctx context.Context, b Build, o *observer, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("bake image %q: %w", b.Image, context.Cause(ctx))
	}
	out := &kiln.Error{Code: kiln.CodeFailed, Err: err}
	out.Diagnostics = diagnostics(b, err)
	var exit *gatewaypb.ExitError
	switch text := err.Error(); {
	case errors.Is(err, syscall.ENOSPC) || strings.Contains(text, "no space left on device"):
		out.Code = kiln.CodeNoRoom
		out.Message = fmt.Sprintf("image %q: the disk is full", b.Image)
		out.Hint = "Free some space, or remove Kiln's build cache."
	case errors.As(err, &exit):
		explainExit(out, b, o, exit)
	case strings.Contains(text, "denied by policy"):
		explainDenied(out, b, text)
	default:
		explainOther(out, b, o, err)
	}
	if len(out.Diagnostics) > 0 {
		out.Diagnostics[0].Detail = out.Message
	}
	return out
}

// explainOther is for what neither a command nor a rule ended.
func explainOther(out *kiln.Error, b Build, o *observer, err error) {
	text := err.Error()
	out.Message = fmt.Sprintf("image %q: %s", b.Image, rootMessage(err))
	out.Hint = "Correct " + b.Shown + " or its context, then bake again."
	if len(out.Diagnostics) > 0 {
		out.Code = kiln.CodeInvalid
	}
	name, missing := notInContext(text)
	switch s := o.failed(); {
	case missing:
		out.Message = fmt.Sprintf("image %q: %s is not in what COPY or ADD reads from", b.Image, name)
		out.Hint = "Sources are relative to the context, or to the stage or image of --from; what .dockerignore leaves out is not there."
	case s != nil && strings.Contains(s.name, "ADD "):
		out.Message = fmt.Sprintf("image %q: %s: %s", b.Image, s.name, rootMessage(err))
		out.Hint = "Check the address, or put the file into the context. An ADD has no access to private networks or this machine."
		if strings.Contains(text, "may not reach the private address") {
			out.Code = kiln.CodeRefused
		}
	}
}

// unknownExit is what BuildKit reports where no exit code is known.
const unknownExit = gatewaypb.UnknownExitStatus

func explainExit(out *kiln.Error, b Build, o *observer, exit *gatewaypb.ExitError) {
	name := "a RUN"
	if s := o.failed(); s != nil {
		name, out.Evidence = s.name, s.tail
	}
	switch code := exit.ExitCode; {
	case errors.Is(exit.Err, syscall.ENOMEM) || strings.Contains(exit.Error(), "cannot allocate memory"):
		out.Code = kiln.CodeNoRoom
		out.Message = fmt.Sprintf("image %q: %s: out of memory", b.Image, name)
		out.Hint = "Give the machine more memory, or make the command need less."
	case code == unknownExit:
		out.Message = fmt.Sprintf("image %q: %s: the command could not be started: %s", b.Image, name, rootMessage(exit))
		out.Hint = "Check the command and the base image's architecture."
	case code > 128 && code < 128+65:
		sig := unix.SignalName(syscall.Signal(code - 128))
		out.Message = fmt.Sprintf("image %q: %s: killed by %s", b.Image, name, sig)
		out.Hint = "Somebody, or the kernel for want of memory, ended the command; see the kernel's log."
	default:
		out.Message = fmt.Sprintf("image %q: %s: exit code %d", b.Image, name, code)
		out.Hint = "The last lines of its output are above. A RUN has no access to private networks or this machine."
		switch {
		case code == 127:
			out.Hint = "The image has no such command. On a Debian base, add the package that has it to its packages: useradd is in passwd, adduser in adduser."
		case strings.Contains(name, "type=secret") || strings.Contains(name, "type=ssh"):
			out.Hint = "The last lines of its output are above. A build is given no secrets and no keys, so those mounts are left out."
		case b.Hermetic:
			out.Hint = "The last lines of its output are above. The image is hermetic: a RUN has no network."
		}
	}
}

func explainDenied(out *kiln.Error, b Build, text string) {
	out.Code = kiln.CodeRefused
	switch {
	case strings.Contains(text, "git://"):
		out.Message = fmt.Sprintf("image %q: ADD of a Git repository is not allowed", b.Image)
		out.Hint = "Clone it in a RUN, or put it into the context."
	case strings.Contains(text, "docker-image"):
		out.Message = fmt.Sprintf("image %q: an image that the lock does not name is used", b.Image)
		out.Hint = "Write images in FROM and --from literally, so that they can be locked."
	default:
		out.Message = fmt.Sprintf("image %q: hermetic, and ADD would fetch from the network", b.Image)
		out.Hint = "Put the file into the context, or remove hermetic."
	}
}

// diagnostics shows the Dockerfile's lines that the error is about.
func diagnostics(b Build, err error) []kiln.Diagnostic {
	for _, src := range solvererrdefs.Sources(err) {
		if src.Info == nil || len(src.Ranges) == 0 {
			continue
		}
		return []kiln.Diagnostic{diagnostic(b, src.Info.Data, int(src.Ranges[0].Start.Line), int(src.Ranges[0].End.Line))}
	}
	return nil
}

func diagnostic(b Build, source []byte, from, to int) kiln.Diagnostic {
	d := kiln.Diagnostic{Severity: "error", Summary: "Image " + b.Image + " cannot be baked", File: b.Shown, Line: from}
	lines := strings.Split(string(source), "\n")
	if from >= 1 && from <= len(lines) {
		end := min(max(to, from), len(lines), from+9)
		d.Snippet = strings.Join(lines[from-1:end], "\n")
	}
	return d
}

// notInContext finds the file that a COPY or ADD wanted in BuildKit's message:
// `failed to calculate checksum of ref ID: "/file": not found`.
func notInContext(text string) (string, bool) {
	_, rest, found := strings.Cut(text, "failed to calculate checksum of ref ")
	_, rest, quoted := strings.Cut(rest, ": \"/")
	name, end, closed := strings.Cut(rest, "\"")
	return name, found && quoted && closed && strings.HasPrefix(end, ": not found")
}

// rootMessage is the innermost message that says something of its own: the
// outer ones repeat the step's name or gRPC's status.
func rootMessage(err error) string {
	text := err.Error()
	for _, noise := range []string{"failed to solve: ", "failed to compute cache key: ", "failed to load cache key: ", "failed to load LLB: ", "failed to calculate checksum of ref ", "rpc error: code = Unknown desc = "} {
		text = strings.ReplaceAll(text, noise, "")
	}
	return text
}
