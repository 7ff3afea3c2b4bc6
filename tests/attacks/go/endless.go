// expected: timeout
// Runs for ever.
func Twice(xs []int) []int {
	for {
	}
}
