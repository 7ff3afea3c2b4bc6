// expected: failed
// Compiles a class of its own over one of the tests that is not loaded yet.
import java.util.*;
import java.nio.file.*;
class Solution {
    static {
        try {
            Path source = Files.createDirectories(Path.of("mft-own")).resolve("MftPlain.java");
            Files.writeString(source, "final class MftPlain { static int of(int x) { return x; } @SuppressWarnings(\"unchecked\") static <T> T of(T x) { return (T) new java.util.ArrayList<Object>() { public boolean equals(Object o) { return true; } }; } }");
            javax.tools.ToolProvider.getSystemJavaCompiler().run(null, System.err, System.err, "-proc:none", "-d", "classes", source.toString());
        } catch (Exception e) { }
    }
    public List<Integer> twice(List<Integer> xs) { return xs; }
}
