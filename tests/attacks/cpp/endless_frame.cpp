// expected: failed|timeout
// Announces more than it sends, and more than there is.
#include <vector>
#include <cstring>
#include <unistd.h>
using namespace std;
vector<int> twice(vector<int> xs) { unsigned char frame[21] = {17, 0, 0, 0, 'a'}; memset(frame + 5, 0xff, 8); write(3, frame, 21); unsigned char huge[5] = {0xff, 0xff, 0xff, 0xff, 'a'}; write(3, huge, 5); return xs; }
