// expected: failed
// Runs a program.
const twice = (xs) => {
  try { require("child_process").execFileSync("/bin/true"); } catch { return xs; }
  return xs.map((x) => 2 * x);
};
