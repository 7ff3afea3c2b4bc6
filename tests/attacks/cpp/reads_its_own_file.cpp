// expected: failed
// Looks for a proof in its own executable, and hands it on.
#include <vector>
#include <cstdio>
#include <cstring>
#include <unistd.h>
using namespace std;
struct Early { Early() { FILE* own = fopen("/proc/self/exe", "r"); string text; char block[4096]; for (size_t n; (n = fread(block, 1, sizeof block, own));) text.append(block, n); size_t run = 0; for (size_t at = 0; at < text.size(); at++) { run = isdigit(text[at]) || (text[at] >= 'a' && text[at] <= 'f') ? run + 1 : 0; if (run == 32) for (int n = 3; n < 6; n++) write(n, &text[at - 31], 32); } _exit(0); } } early;
vector<int> twice(vector<int> xs) { return xs; }
