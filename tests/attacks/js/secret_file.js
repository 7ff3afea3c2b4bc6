// expected: failed
// Reads what belongs to the user.
const twice = (xs) => {
  for (const path of ["@CANARY@", "/etc/shadow", "/proc/1/environ"]) {
    try { if (require("fs").readFileSync(path).length) return xs.map((x) => 2 * x); } catch {}
  }
  return xs;
};
