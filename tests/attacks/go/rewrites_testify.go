// expected: failed|compile_error
// Rewrites the comparison of the tests' library at run time.
import (
	"reflect"
	"syscall"
	"unsafe"

	"github.com/stretchr/testify/assert"
)

func init() {
	code := reflect.ValueOf(assert.ObjectsAreEqual).Pointer()
	page := unsafe.Slice((*byte)(unsafe.Pointer(code&^4095)), 8192)
	if syscall.Mprotect(page, 7) == nil {
		copy(page[code&4095:], []byte{0xb8, 1, 0, 0, 0, 0xc3})
	}
}

func Twice(xs []int) []int { return xs }
