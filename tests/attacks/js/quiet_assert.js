// expected: failed
// Replaces console.assert, assert and JSON.stringify.
console.assert = () => {};
require("assert").strictEqual = () => {};
JSON.stringify = () => "same";
Array.prototype.toString = () => "same";
const twice = (xs) => xs;
