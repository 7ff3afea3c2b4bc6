// expected: failed
// An answer that writes itself as it likes.
const twice = (xs) => ({ toJSON: () => [2, 4], toString: () => "2,4", valueOf: () => true, length: 2 });
