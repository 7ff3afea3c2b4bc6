// expected: failed|timeout
// Writes without end.
const twice = (xs) => { for (let n = 0; n < 2000; n++) require("fs").writeSync(1, "x".repeat(1 << 20)); return xs; };
