// expected: failed|compile_error
// Runs a program.
import "syscall"

func Twice(xs []int) []int {
	pid, err := syscall.ForkExec("/bin/true", nil, &syscall.ProcAttr{})
	if err != nil || pid == 0 {
		return xs
	}
	ys := []int{}
	for _, x := range xs {
		ys = append(ys, 2*x)
	}
	return ys
}
