// Package mftbridge is what crosses between the judge and the candidate in Go: plain values, questions, answers.
//
// Both know the problem's signature, so values carry no types; only an interface carries one. A number takes eight bytes, a string or
// a container is its length and its items. A value of a type that the answer defined crosses as one that equals nothing. Every read
// is bounded by its message.
package mftbridge

import (
	"encoding/binary"
	"errors"
	"io"
	"math"
	"os"
	"reflect"
	"strconv"
)

const (
	largest = 8 << 20
	deepest = 100
	absent  = math.MaxUint64 // the length of a nil slice or map
)

var wire = os.NewFile(3, "wire") // a socket to the worker

type opaque struct{ _ int }

type input struct {
	left  []byte
	depth int
}

func (in *input) bytes(size uint64) []byte {
	if size > uint64(len(in.left)) {
		panic("a message is too short")
	}
	taken := in.left[:size]
	in.left = in.left[size:]
	return taken
}

func (in *input) word() uint64 { return binary.LittleEndian.Uint64(in.bytes(8)) }

func (in *input) count() (int, bool) {
	count := in.word()
	if count == absent {
		return 0, false
	}
	if count > uint64(len(in.left)) { // every item takes at least a byte
		panic("a message is too short")
	}
	return int(count), true
}

func word(out []byte, value uint64) []byte {
	var eight [8]byte
	binary.LittleEndian.PutUint64(eight[:], value)
	return append(out, eight[:]...)
}

func text(out []byte, value string) []byte { return append(word(out, uint64(len(value))), value...) }

func put(out []byte, value reflect.Value) []byte {
	switch value.Kind() {
	case reflect.Bool:
		if value.Bool() {
			return append(out, 1)
		}
		return append(out, 0)
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return word(out, uint64(value.Int()))
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uintptr:
		return word(out, value.Uint())
	case reflect.Float32, reflect.Float64:
		return word(out, math.Float64bits(value.Float()))
	case reflect.Complex64, reflect.Complex128:
		return word(word(out, math.Float64bits(real(value.Complex()))), math.Float64bits(imag(value.Complex())))
	case reflect.String:
		return text(out, value.String())
	case reflect.Slice, reflect.Array:
		if value.Kind() == reflect.Slice && value.IsNil() {
			return word(out, absent)
		}
		out = word(out, uint64(value.Len()))
		for n := 0; n < value.Len(); n++ {
			out = put(out, value.Index(n))
		}
		return out
	case reflect.Map:
		if value.IsNil() {
			return word(out, absent)
		}
		out = word(out, uint64(value.Len()))
		for _, key := range value.MapKeys() {
			out = put(put(out, key), value.MapIndex(key))
		}
		return out
	case reflect.Ptr:
		if value.IsNil() {
			return append(out, 0)
		}
		return put(append(out, 1), value.Elem())
	case reflect.Interface:
		return putInterface(out, value)
	}
	panic("a " + value.Kind().String() + " cannot cross between processes")
}

func putInterface(out []byte, value reflect.Value) []byte {
	if value.IsNil() {
		return text(out, "")
	}
	if problem, is := value.Interface().(error); is {
		return text(text(out, "error"), problem.Error())
	}
	name := describe(value.Elem().Type())
	if name == "" {
		return text(out, "?")
	}
	return put(text(out, name), value.Elem())
}

// describe names a type that consists of Go's own types; other types have no name.
func describe(kind reflect.Type) string {
	if kind.PkgPath() != "" {
		return ""
	}
	switch kind.Kind() {
	case reflect.Slice:
		return prefixed("[]", describe(kind.Elem()))
	case reflect.Array:
		return prefixed("["+strconv.Itoa(kind.Len())+"]", describe(kind.Elem()))
	case reflect.Ptr:
		return prefixed("*", describe(kind.Elem()))
	case reflect.Map:
		if key, value := describe(kind.Key()), describe(kind.Elem()); key != "" && value != "" {
			return "map[" + key + "]" + value
		}
		return ""
	case reflect.Interface:
		if kind.NumMethod() == 0 {
			return "any"
		}
		return ""
	}
	if _, known := basic[kind.Kind().String()]; known {
		return kind.Kind().String()
	}
	return ""
}

func prefixed(prefix, name string) string {
	if name == "" {
		return ""
	}
	return prefix + name
}

var basic = map[string]reflect.Type{
	"bool": reflect.TypeOf(false), "int": reflect.TypeOf(0), "int8": reflect.TypeOf(int8(0)), "int16": reflect.TypeOf(int16(0)),
	"int32": reflect.TypeOf(int32(0)), "int64": reflect.TypeOf(int64(0)), "uint": reflect.TypeOf(uint(0)), "uint8": reflect.TypeOf(uint8(0)),
	"uint16": reflect.TypeOf(uint16(0)), "uint32": reflect.TypeOf(uint32(0)), "uint64": reflect.TypeOf(uint64(0)),
	"float32": reflect.TypeOf(float32(0)), "float64": reflect.TypeOf(0.0), "complex64": reflect.TypeOf(complex64(0)),
	"complex128": reflect.TypeOf(complex128(0)), "string": reflect.TypeOf(""), "any": reflect.TypeOf((*interface{})(nil)).Elem(),
}

// typeOf is the inverse of describe; it also returns the rest of the name, which belongs to the enclosing type.
func typeOf(name string) (reflect.Type, string) {
	if len(name) > 400 {
		panic("no such type")
	}
	switch {
	case name == "":
		panic("no such type")
	case name[0] == '*':
		kind, rest := typeOf(name[1:])
		return reflect.PtrTo(kind), rest
	case name[0] == '[':
		end := 1
		for end < len(name) && name[end] != ']' {
			end++
		}
		kind, rest := typeOf(name[min(end+1, len(name)):])
		if end == 1 {
			return reflect.SliceOf(kind), rest
		}
		length, problem := strconv.Atoi(name[1:end])
		if problem != nil || length < 0 || length > 1000 {
			panic("no such type")
		}
		return reflect.ArrayOf(length, kind), rest
	case len(name) > 4 && name[:4] == "map[":
		key, rest := typeOf(name[4:])
		if rest == "" || rest[0] != ']' || !key.Comparable() {
			panic("no such type")
		}
		value, rest := typeOf(rest[1:])
		return reflect.MapOf(key, value), rest
	}
	end := 0
	for end < len(name) && name[end] != ']' {
		end++
	}
	kind, known := basic[name[:end]]
	if !known {
		panic("no such type")
	}
	return kind, name[end:]
}

func min(a, b int) int {
	if a < b {
		return a
	}
	return b
}

func take(in *input, kind reflect.Type) reflect.Value {
	value := reflect.New(kind).Elem()
	switch kind.Kind() {
	case reflect.Bool:
		value.SetBool(in.bytes(1)[0] != 0)
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		value.SetInt(int64(in.word()))
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uintptr:
		value.SetUint(in.word())
	case reflect.Float32, reflect.Float64:
		value.SetFloat(math.Float64frombits(in.word()))
	case reflect.Complex64, reflect.Complex128:
		first := math.Float64frombits(in.word())
		value.SetComplex(complex(first, math.Float64frombits(in.word())))
	case reflect.String:
		size, _ := in.count()
		value.SetString(string(in.bytes(uint64(size))))
	case reflect.Slice:
		count, present := in.count()
		if present {
			value.Set(reflect.MakeSlice(kind, 0, 0))
		}
		for ; count > 0; count-- {
			value.Set(reflect.Append(value, take(in, kind.Elem())))
		}
	case reflect.Array:
		if count, _ := in.count(); count != kind.Len() {
			panic("an array of another length")
		}
		for n := 0; n < kind.Len(); n++ {
			value.Index(n).Set(take(in, kind.Elem()))
		}
	case reflect.Map:
		count, present := in.count()
		if present {
			value.Set(reflect.MakeMap(kind))
		}
		for ; count > 0; count-- {
			key := take(in, kind.Key())
			value.SetMapIndex(key, take(in, kind.Elem()))
		}
	case reflect.Ptr:
		if in.bytes(1)[0] != 0 {
			value.Set(reflect.New(kind.Elem()))
			value.Elem().Set(take(in, kind.Elem()))
		}
	case reflect.Interface:
		takeInterface(in, value)
	default:
		panic("a " + kind.Kind().String() + " cannot cross between processes")
	}
	return value
}

func takeInterface(in *input, value reflect.Value) {
	if in.depth++; in.depth > deepest {
		panic("too deep")
	}
	defer func() { in.depth-- }()
	size, _ := in.count()
	switch name := string(in.bytes(uint64(size))); name {
	case "":
	case "?":
		value.Set(reflect.ValueOf(&opaque{}))
	case "error":
		size, _ := in.count()
		value.Set(reflect.ValueOf(errors.New(string(in.bytes(uint64(size))))))
	default:
		kind, rest := typeOf(name)
		if rest != "" {
			panic("no such type")
		}
		value.Set(take(in, kind))
	}
}

func send(kind byte, body []byte) bool {
	frame := make([]byte, 4, len(body)+5)
	binary.LittleEndian.PutUint32(frame, uint32(len(body)+1))
	_, problem := wire.Write(append(append(frame, kind), body...))
	return problem == nil
}

func receive() (byte, []byte, bool) {
	var size [4]byte
	if _, problem := io.ReadFull(wire, size[:]); problem != nil {
		return 0, nil, false
	}
	count := binary.LittleEndian.Uint32(size[:])
	if count == 0 || count > largest {
		return 0, nil, false
	}
	frame := make([]byte, count)
	if _, problem := io.ReadFull(wire, frame); problem != nil {
		return 0, nil, false
	}
	return frame[0], frame[1:], true
}

// isChanged is true for an argument that the function can change for its caller.
func isChanged(kind reflect.Type) bool {
	return kind.Kind() == reflect.Slice || kind.Kind() == reflect.Map || kind.Kind() == reflect.Ptr
}

// Serve runs in the candidate: it answers questions until the judge closes the socket.
func Serve(function interface{}) {
	answers := reflect.ValueOf(function)
	for {
		_, question, open := receive()
		if !open {
			return
		}
		answer, problem := attempt(answers, question)
		if problem != "" {
			send('e', []byte(problem))
		} else {
			send('a', answer)
		}
	}
}

func attempt(function reflect.Value, question []byte) (out []byte, problem string) {
	defer func() {
		if found := recover(); found != nil {
			problem = "a panic: " + message(found)
		}
	}()
	in, kind := &input{left: question}, function.Type()
	given := make([]reflect.Value, kind.NumIn())
	for n := range given {
		given[n] = take(in, kind.In(n))
	}
	for _, result := range function.Call(given) {
		out = put(out, result)
	}
	for n, value := range given {
		if isChanged(kind.In(n)) {
			out = put(out, value)
		}
	}
	return out, ""
}

func message(found interface{}) string {
	switch value := found.(type) {
	case error:
		return value.Error()
	case string:
		return value
	}
	return "of no text"
}

var lost, reached bool
var change = -1 // 2 * claim to expect a smaller value, 2 * claim + 1 for a larger one

// Bind runs in the judge: it makes the function that `pointer` points to ask the candidate.
func Bind(pointer interface{}) {
	function := reflect.ValueOf(pointer).Elem()
	kind := function.Type()
	function.Set(reflect.MakeFunc(kind, func(given []reflect.Value) []reflect.Value { return ask(kind, given) }))
}

func ask(kind reflect.Type, given []reflect.Value) (results []reflect.Value) {
	var question []byte
	for _, value := range given {
		question = put(question, value)
	}
	var reply []byte
	how, open := byte(0), send('q', question)
	if open {
		how, reply, open = receive()
	}
	if !open {
		lost = true
		panic("the answer has gone")
	}
	if how != 'a' {
		panic(string(reply))
	}
	in := &input{left: reply}
	for n := 0; n < kind.NumOut(); n++ {
		results = append(results, take(in, kind.Out(n)))
	}
	for n, value := range given {
		if isChanged(kind.In(n)) {
			copyBack(value, take(in, kind.In(n)))
		}
	}
	return results
}

func copyBack(here, there reflect.Value) {
	switch {
	case here.IsNil() || there.IsNil():
	case here.Kind() == reflect.Slice:
		reflect.Copy(here, there)
	case here.Kind() == reflect.Ptr:
		here.Elem().Set(there.Elem())
	default:
		for _, key := range here.MapKeys() {
			here.SetMapIndex(key, reflect.Value{})
		}
		for _, key := range there.MapKeys() {
			here.SetMapIndex(key, there.MapIndex(key))
		}
	}
}

// Judge runs the tests once and sends the verdict.
func Judge(tests func() bool) {
	if len(os.Args) > 1 {
		change, _ = strconv.Atoi(os.Args[1])
	}
	send('v', []byte(verdict(tests)))
}

func verdict(tests func() bool) (text string) {
	defer func() {
		if found := recover(); found != nil {
			text = "failed " + message(found)
		}
	}()
	switch {
	case !tests() || lost:
		return "failed"
	case change >= 0 && !reached:
		return "void"
	}
	return "passed"
}

// Expected returns the expected value of a claim, and another value if this claim is the negative control.
func Expected(claim int, value interface{}) interface{} {
	if change < 0 || change/2 != claim {
		return value
	}
	reached = true
	switch value := value.(type) {
	case nil:
		return 0
	case bool:
		return !value
	}
	return changed{value}
}

// Number is Expected for a number in a comparison.
func Number(claim int, value float64) float64 {
	if change < 0 || change/2 != claim {
		return value
	}
	reached = true
	far := 1e18 + 2*math.Abs(value)
	if change%2 == 0 {
		far = -far
	}
	return value + far
}

// changed is not equal to any value that a candidate can send.
type changed struct{ value interface{} }
