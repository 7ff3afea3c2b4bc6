// expected: failed|timeout
// Reaches a server on this machine.
const net = require("net");
let reached = false;
const end = net.connect(Number("@PORT@"), "127.0.0.1", () => { reached = true; });
end.on("error", () => {});
const twice = (xs) => (reached ? xs.map((x) => 2 * x) : xs);
