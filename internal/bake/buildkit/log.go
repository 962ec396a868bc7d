package buildkit

import (
	"io"
	"log/slog"

	"github.com/sirupsen/logrus"
)

// redirectLog sends what BuildKit logs through its process-wide logger to l.
// What is below a warning is dropped.
func redirectLog(l *slog.Logger) {
	std := logrus.StandardLogger()
	std.SetOutput(io.Discard)
	std.SetLevel(logrus.WarnLevel)
	std.ReplaceHooks(logrus.LevelHooks{})
	std.AddHook(hook{l})
}

type hook struct{ log *slog.Logger }

func (hook) Levels() []logrus.Level {
	return []logrus.Level{logrus.PanicLevel, logrus.FatalLevel, logrus.ErrorLevel, logrus.WarnLevel}
}

// fsverity is what containerd says of each content store that it opens where
// the file system has no fs-verity, which nothing here relies on.
const fsverity = "failed check for fsverity support"

func (h hook) Fire(e *logrus.Entry) error {
	if e.Message == fsverity {
		return nil
	}
	if cause, ok := e.Data[logrus.ErrorKey]; ok {
		h.log.Warn("buildkit", "message", e.Message, "error", cause)
		return nil
	}
	h.log.Warn("buildkit", "message", e.Message)
	return nil
}
