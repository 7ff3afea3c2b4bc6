// expected: passed
// No attack.
func Twice(xs []int) []int {
	ys := []int{}
	for _, x := range xs {
		ys = append(ys, 2*x)
	}
	return ys
}
