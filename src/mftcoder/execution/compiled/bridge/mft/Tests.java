package mft;

import java.io.ByteArrayOutputStream;
import java.io.EOFException;
import java.io.IOException;
import java.io.OutputStream;
import java.io.PrintStream;
import java.io.StringWriter;
import java.lang.reflect.InvocationTargetException;
import java.lang.reflect.Method;
import java.net.URI;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.util.*;
import javax.tools.*;

/**
 * The judge's process: compiles answers and tests, runs tests, and asks the candidate for values. It serves many programs, so its
 * compiler is warm. Answers are compiled here but never loaded; only the tests' classes are.
 */
public final class Tests {
    private static final int KEPT = 16;
    private static final JavaCompiler COMPILER = ToolProvider.getSystemJavaCompiler();
    private static final Map<String, byte[]> TESTS = new LinkedHashMap<>(KEPT, 0.75f, true) {
        @Override protected boolean removeEldestEntry(Map.Entry<String, byte[]> eldest) { return size() > KEPT; }
    };
    private static Wire wire;
    private static boolean lost;
    private static Map<Object, Integer> instances = new IdentityHashMap<>();

    private Tests() { }

    public static void main(String[] none) throws IOException {
        wire = new Wire();
        System.setOut(new PrintStream(OutputStream.nullOutputStream()));
        System.setErr(System.out);
        try {
            while (true) {
                Wire.Frame frame = wire.receive();
                if (frame.kind() == 'c') compileAnswer(new String(frame.body(), StandardCharsets.UTF_8));
                else if (frame.kind() == 'p') prepare(new String(frame.body(), StandardCharsets.UTF_8));
                else run(frame.body());
            }
        } catch (EOFException end) {
            Runtime.getRuntime().halt(0);
        }
    }

    /** Sends `k` and the classes, or `x` and the compiler's messages. */
    private static void compileAnswer(String source) throws IOException {
        StringWriter messages = new StringWriter();
        byte[] bundle = null;
        try {
            bundle = compile("Solution", source, messages);
        } catch (OutOfMemoryError | StackOverflowError error) {
            messages.append(error.toString());
        }
        wire.send(bundle == null ? 'x' : 'k', bundle == null ? messages.toString().getBytes(StandardCharsets.UTF_8) : bundle);
    }

    /** The classes of one source as a bundle; null if it does not compile. */
    private static byte[] compile(String name, String source, StringWriter messages) throws IOException {
        Map<String, ByteArrayOutputStream> made = new HashMap<>();
        var files = new ForwardingJavaFileManager<>(COMPILER.getStandardFileManager(null, null, StandardCharsets.UTF_8)) {
            @Override public JavaFileObject getJavaFileForOutput(Location place, String type, JavaFileObject.Kind kind, FileObject sibling) {
                return new SimpleJavaFileObject(URI.create("mem:///" + type.replace('.', '/') + ".class"), kind) {
                    @Override public OutputStream openOutputStream() {
                        return made.computeIfAbsent(type, key -> new ByteArrayOutputStream());
                    }
                };
            }
        };
        var unit = new SimpleJavaFileObject(URI.create("mem:///" + name + ".java"), JavaFileObject.Kind.SOURCE) {
            @Override public CharSequence getCharContent(boolean lenient) { return source; }
        };
        List<String> options = List.of("-proc:none", "-nowarn", "-XDuseUnsharedTable=true");
        if (!COMPILER.getTask(messages, files, null, options, null, List.of(unit)).call()) return null;
        Map<String, byte[]> classes = new HashMap<>();
        made.forEach((type, bytes) -> classes.put(type, bytes.toByteArray()));
        return Classes.bundle(classes);
    }

    /** Sends `k` if these tests compile, or `x` and the compiler's messages. */
    private static void prepare(String source) throws IOException {
        StringWriter messages = new StringWriter();
        boolean compiles = TESTS.containsKey(source) || compiledTests(source, messages) != null;
        wire.send(compiles ? 'k' : 'x', messages.toString().getBytes(StandardCharsets.UTF_8));
    }

    private static byte[] compiledTests(String source, StringWriter messages) throws IOException {
        byte[] tests = TESTS.get(source);
        if (tests == null && (tests = compile("MftTests", source, messages)) != null) TESTS.put(source, tests);
        return tests;
    }

    /** Runs the tests once and sends `v` and the verdict. The body is `change` in four bytes, then the source. */
    private static void run(byte[] body) throws IOException {
        byte[] tests = compiledTests(new String(body, 4, body.length - 4, StandardCharsets.UTF_8), new StringWriter());
        Claims.change = ByteBuffer.wrap(body).order(ByteOrder.LITTLE_ENDIAN).getInt();
        Claims.reached = lost = false;
        instances = new IdentityHashMap<>();
        wire.send('v', verdict(tests).getBytes(StandardCharsets.UTF_8));
    }

    private static String verdict(byte[] tests) throws IOException {
        try {
            Method main = new Classes(tests).loadClass("Main").getDeclaredMethod("main", String[].class);
            main.setAccessible(true);
            main.invoke(null, (Object) new String[0]);
        } catch (InvocationTargetException error) {
            String text = String.valueOf(error.getCause());
            return "failed " + text.substring(0, Math.min(400, text.length()));
        } catch (ReflectiveOperationException | LinkageError error) {
            return "failed " + error;
        }
        return lost ? "failed the answer has gone" : Claims.change >= 0 && !Claims.reached ? "void" : "passed";
    }

    /** What the answer's `type.method` returns for these arguments; `receiver` is null for a static method. */
    public static Object ask(String type, String method, Object receiver, Object... given) {
        int instance = receiver == null ? -1 : instances.computeIfAbsent(receiver, key -> instances.size());
        Object[] question = new Object[given.length + 3];
        question[0] = type;
        question[1] = method;
        question[2] = instance;
        System.arraycopy(given, 0, question, 3, given.length);
        try {
            wire.send('q', Values.encode(question));
            Wire.Frame frame = wire.receive();
            if (frame.kind() != 'a') throw new IllegalStateException(new String(frame.body(), StandardCharsets.UTF_8));
            Object[] answer = Values.decode(frame.body());
            for (int n = 1; n < answer.length; n++) Values.copyBack(given[n - 1], answer[n]);
            return answer[0];
        } catch (IOException | RuntimeException error) {
            if (error instanceof EOFException) lost = true;
            throw error instanceof RuntimeException known ? known : new IllegalStateException(error);
        }
    }
}
