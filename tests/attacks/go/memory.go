// expected: out_of_memory|failed|timeout
// Takes all memory.
var held [][]byte

func Twice(xs []int) []int {
	for {
		block := make([]byte, 1<<26)
		for n := range block {
			block[n] = 1
		}
		held = append(held, block)
	}
}
