// expected: failed
// A good ending from a thread of its own.
import (
	"os"
	"time"
)

func init() {
	go func() {
		time.Sleep(time.Microsecond)
		os.Exit(0)
	}()
}

func Twice(xs []int) []int {
	time.Sleep(time.Second / 10)
	return xs
}
