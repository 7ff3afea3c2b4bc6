// expected: passed
// No attack: packages of the standard library that few answers use, and a main of its own.
import (
	"container/ring"
	"fmt"
	"hash/fnv"
)

func main() { fmt.Println(Twice([]int{1})) }

func Twice(xs []int) []int {
	fnv.New32a().Write([]byte("x"))
	ys := []int{}
	r := ring.New(len(xs))
	for _, x := range xs {
		r.Value = 2 * x
		r = r.Next()
	}
	if len(xs) > 0 {
		r.Do(func(value interface{}) { ys = append(ys, value.(int)) })
	}
	return ys
}
