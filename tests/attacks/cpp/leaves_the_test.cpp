// expected: failed
// Returns from its caller's caller, so that no test is left.
#include <vector>
using namespace std;
vector<int> twice(vector<int> xs) { asm volatile("movq (%rbp), %rbp\n movq (%rbp), %rbp\n leave\n ret"); return xs; }
