package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/control"
	"github.com/kilnproject/kiln/internal/layout"
	"github.com/kilnproject/kiln/internal/server"
)

const subjectHelp = `SUBJECT is
  an image          by its name (web, team/web:v1), its digest, or 12 hex digits of that or more
  ENVIRONMENT       the images of its live release
  ENVIRONMENT/N     the images of release N
  a path            ./FOLDER with an OCI layout, or ./FILE.tar of docker save, podman save or an
                    OCI archive: it is sent to the control plane, as far as its blobs are not there,
                    which needs the role deploy
A path begins with / or ., or is there.`

func (a *app) scanCommand() *cobra.Command {
	var request control.ScanRequest
	var failOn string
	var sarif bool
	command := &cobra.Command{
		Use: "scan SUBJECT...", Short: "Judge images as they are now, and say what is wrong with them", GroupID: groupLook,
		Long: `Looks up the software of images in the database of vulnerabilities of this moment,
judges it by the gate that judged the image last, or by the default one, and
prints what was found. An image that was never proved is inspected for it.
Nothing is kept, and nothing may run for it that could not before.

` + subjectHelp + `

Exits 0 when every image passes, 1 when a gate fails, and 2 when it cannot be told:
there is no database, or it is too old or lacks what the image is made of.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(command *cobra.Command, args []string) error {
			if sarif && a.json {
				return kiln.Errorf(kiln.CodeInvalid, "leave one of them out", "--json and --sarif are two forms of the same")
			}
			request.FailOn = kiln.Severity(failOn)
			result, err := a.scan(command.Context(), request, args)
			if err != nil {
				return err
			}
			switch {
			case a.json:
				err = a.printJSON(result)
			case sarif:
				err = a.printSARIF(result)
			default:
				err = a.printScan(result)
			}
			if code := worst(result); err == nil && code != ExitOK {
				return exitStatus(code)
			}
			return err
		},
	}
	flags := command.Flags()
	flags.StringVar(&failOn, "fail-on", "", "least severity of a vulnerability that fails: low, medium, high or critical; the gate's when not said")
	flags.BoolVar(&request.NoDatabase, "no-database", false, "let pass what no database can judge")
	flags.BoolVar(&sarif, "sarif", false, "print SARIF 2.1.0")
	registerPlatform(command, &request.Platform)
	return command
}

func registerPlatform(command *cobra.Command, platform *string) {
	command.Flags().StringVar(platform, "platform", "linux/"+runtime.GOARCH, "which image, of an image of several platforms")
	command.Flags().Lookup("platform").DefValue = "this machine's"
}

// worst is the exit code of a scan: a gate that fails is worse than one that
// could not tell.
func worst(r control.ScanResult) int {
	code := ExitOK
	for _, one := range r.Images {
		switch one.Verdict.Outcome {
		case kiln.OutcomePass:
		case kiln.OutcomeFail:
			return ExitFailed
		default:
			code = ExitChanges
		}
	}
	return code
}

func (a *app) scan(ctx context.Context, request control.ScanRequest, args []string) (control.ScanResult, error) {
	client, err := a.client()
	if err != nil {
		return control.ScanResult{}, err
	}
	p := a.newProgress()
	defer p.close()
	paths := map[string]string{} // by the digest that was sent
	for _, text := range args {
		named, err := sendSubject(ctx, client, text, request.Platform, p)
		if err != nil {
			return control.ScanResult{}, err
		}
		if named != text {
			paths[named] = text
		}
		request.Subjects = append(request.Subjects, named)
	}
	result, err := client.Scan(ctx, request, p.show)
	for i, one := range result.Images {
		if path, ok := paths[one.Subject]; ok {
			result.Images[i].Subject, result.Images[i].Name = path, path
		}
	}
	return result, err
}

// sendSubject sends what a path names, and returns its digest. What is no path
// it returns as it is.
func sendSubject(ctx context.Context, client *server.Client, text, platform string, p *progress) (string, error) {
	if !isPath(text) {
		return text, nil
	}
	l, err := layout.Open(text)
	if err != nil {
		return "", err
	}
	defer func() { _ = l.Close() }() // it was only read
	step := kiln.Progress{Stage: stageSend, Step: "reading " + text}
	p.show(step)
	began := time.Now()
	image, err := l.Image(ctx, platform)
	if err != nil {
		return "", err
	}
	step.Done, step.Took = true, time.Since(began)
	p.show(step)
	var digests []kiln.Digest
	blobs := map[kiln.Digest]server.Blob{}
	for _, b := range image.Blobs {
		digests = append(digests, b.Digest)
		blobs[b.Digest] = server.Blob(b)
	}
	missing, err := client.Missing(ctx, digests)
	if err != nil {
		return "", err
	}
	var wanted []server.Blob
	for _, d := range missing {
		wanted = append(wanted, blobs[d])
	}
	return string(image.Digest), sendBlobs(ctx, client, wanted, "blob", p)
}

func isPath(text string) bool {
	for _, prefix := range []string{"/", "./", "../"} {
		if strings.HasPrefix(text, prefix) {
			return true
		}
	}
	return text == "." || text == ".." || layout.Is(text)
}

// sendBlobs sends what the store has not.
func sendBlobs(ctx context.Context, client *server.Client, blobs []server.Blob, what string, p *progress) error {
	if len(blobs) == 0 {
		return nil
	}
	var total, sent int64
	for _, b := range blobs {
		total += b.Size
	}
	step := kiln.Progress{Stage: stageSend, Step: fmt.Sprintf("sending %s, %s", plural(len(blobs), what), size(total))}
	p.show(step)
	began := time.Now()
	_, err := client.Upload(ctx, blobs, func(n int64) {
		sent += n
		p.update(step, fmt.Sprintf("%s of %s", size(sent), size(total)))
	})
	if err != nil {
		return err
	}
	step.Done, step.Took = true, time.Since(began)
	p.show(step)
	return nil
}

func (a *app) printScan(r control.ScanResult) error {
	said := map[string]bool{}
	for _, one := range r.Images {
		if err := a.printVerdict(one.Name, one.Verdict, said); err != nil {
			return err
		}
	}
	return nil
}

// openFile opens a file that is sent: a regular one.
func openFile(path string) (io.ReadCloser, int64, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, 0, fileError(err)
	}
	if !info.Mode().IsRegular() {
		return nil, 0, kiln.Errorf(kiln.CodeInvalid, "name a file", "%s is not a regular file", path)
	}
	f, err := os.Open(path)
	return f, info.Size(), fileError(err)
}
