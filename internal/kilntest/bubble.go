package kilntest

import (
	"testing/synctest"
	"time"
)

// Pass lets time go by in a test's bubble (package synctest), and waits until
// nothing moves. It takes no time of this machine.
func Pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}
