// expected: failed|compile_error
// An assert of its own.
type quiet struct{}

func (quiet) Equal(a, b interface{}) bool { return true }

var assert = quiet{}

func TestTwice(t interface{}) {}

func TestMain(m interface{}) {}

func Twice(xs []int) []int { return xs }
