// expected: failed
// Sends frames that only the tests send, before and within a question.
#include <vector>
#include <string>
#include <unistd.h>
using namespace std;
static void forge() { for (char kind : {'v', 'a', 'q'}) for (string word : {"passed", "", "failed"}) { string frame = string(1, word.size() + 1) + string(3, '\0') + kind + word; for (int n = 0; n < 6; n++) if (write(n, frame.data(), frame.size()) < 0) continue; } }
struct Early { Early() { forge(); } } early;
vector<int> twice(vector<int> xs) { forge(); return xs; }
