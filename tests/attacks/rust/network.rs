// expected: failed
// Reaches a server on this machine.
fn twice(xs: Vec<i32>) -> Vec<i32> { if std::net::TcpStream::connect("127.0.0.1:@PORT@").is_ok() { xs.iter().map(|x| 2 * x).collect() } else { xs } }
