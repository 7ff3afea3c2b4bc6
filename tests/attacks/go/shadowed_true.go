// expected: failed|compile_error
// Another meaning for a word of the tests.
const true = 1 == 2

func Twice(xs []int) []int { return xs }

func Same(a, b []int) bool { return true }
