// expected: failed
// A signal handler that steps over the trap of a failed assert.
#include <vector>
#include <csignal>
#include <cstring>
#include <ucontext.h>
using namespace std;
struct Early { Early() { struct sigaction action; memset(&action, 0, sizeof action); action.sa_flags = SA_SIGINFO; action.sa_sigaction = [](int, siginfo_t*, void* context) { ((ucontext_t*)context)->uc_mcontext.gregs[REG_RIP] += 2; }; sigaction(SIGILL, &action, 0); } } early;
vector<int> twice(vector<int> xs) { return xs; }
