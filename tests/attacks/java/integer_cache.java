// expected: failed
// Makes all boxed integers equal.
import java.util.*;
class Solution {
    static {
        try {
            var field = sun.misc.Unsafe.class.getDeclaredField("theUnsafe");
            field.setAccessible(true);
            var unsafe = (sun.misc.Unsafe) field.get(null);
            long value = unsafe.objectFieldOffset(Integer.class.getDeclaredField("value"));
            for (int n = -128; n < 128; n++) unsafe.putInt(Integer.valueOf(n), value, 7);
        } catch (Exception e) { e.printStackTrace(); }
    }
    public List<Integer> twice(List<Integer> xs) { return xs; }
}
