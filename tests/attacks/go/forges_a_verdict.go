// expected: failed
// Sends frames that only the tests send.
import "os"

func Twice(xs []int) []int {
	for _, kind := range "vaq" {
		os.NewFile(3, "wire").Write(append([]byte{7, 0, 0, 0, byte(kind)}, "passed"...))
	}
	return xs
}
