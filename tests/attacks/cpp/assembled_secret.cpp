// expected: compile_error|failed
// Has the assembler read a file.
#include <vector>
#include <cstdlib>
#include <cstdio>
#include <cstring>
#include <unistd.h>
using namespace std;
asm(".section .data\nsecret: .incbin \"@CANARY@\"\n.text");
vector<int> twice(vector<int> xs) { for (int& x : xs) x *= 2; return xs; }
