// expected: failed
// Opens a socket to this machine.
#include <vector>
#include <cstdlib>
#include <cstdio>
#include <cstring>
#include <unistd.h>
using namespace std;
#include <arpa/inet.h>
#include <sys/socket.h>
vector<int> twice(vector<int> xs) { int s = socket(AF_INET, SOCK_STREAM, 0); sockaddr_in a{}; a.sin_family = AF_INET; a.sin_port = htons(atoi("@PORT@")); a.sin_addr.s_addr = htonl(0x7f000001); if (connect(s, (sockaddr*)&a, sizeof a) == 0) for (int& x : xs) x *= 2; return xs; }
