// expected: out_of_memory|failed|timeout
// Takes all memory.
const twice = (xs) => { const held = []; for (;;) held.push(new Array(1e6).fill(held.length)); };
