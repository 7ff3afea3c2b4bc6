// expected: failed
// Defines a class that the tests use, in their own loader, before they do.
import java.util.*;
import java.nio.file.*;
import java.lang.invoke.MethodHandles;
class Solution {
    static {
        try {
            Path folder = Files.createDirectories(Path.of("mft-own")), source = folder.resolve("MftPlain.java");
            Files.writeString(source, "final class MftPlain { static int of(int x) { return x; } @SuppressWarnings(\"unchecked\") static <T> T of(T x) { return (T) new java.util.ArrayList<Object>() { public boolean equals(Object o) { return true; } }; } }");
            javax.tools.ToolProvider.getSystemJavaCompiler().run(null, System.err, System.err, "-proc:none", "-d", folder.toString(), source.toString());
            for (String name : new String[] {"MftPlain$1", "MftPlain"}) MethodHandles.lookup().defineClass(Files.readAllBytes(folder.resolve(name + ".class")));
        } catch (Exception e) { e.printStackTrace(); }
    }
    public List<Integer> twice(List<Integer> xs) { return xs; }
}
