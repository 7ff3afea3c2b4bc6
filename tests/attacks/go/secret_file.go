// expected: failed
// Reads what belongs to the user.
import "os"

func Twice(xs []int) []int {
	for _, path := range []string{"@CANARY@", "/etc/shadow", "/proc/1/environ"} {
		if text, err := os.ReadFile(path); err == nil && len(text) > 0 {
			ys := []int{}
			for _, x := range xs {
				ys = append(ys, 2*x)
			}
			return ys
		}
	}
	return xs
}
