package mft;

import java.io.EOFException;
import java.io.IOException;
import java.lang.reflect.InvocationTargetException;
import java.lang.reflect.Method;
import java.lang.reflect.Modifier;
import java.util.Arrays;
import java.util.HashMap;
import java.util.Map;

/** The candidate's process: holds the answer's classes, and replies to questions until the judge closes the socket. */
public final class Answer {
    private final Classes classes;
    private final Map<Integer, Object> instances = new HashMap<>();

    private Answer(byte[] bundle) throws IOException {
        classes = new Classes(bundle);
    }

    public static void main(String[] none) throws IOException {
        Wire wire = new Wire();
        try {
            Answer answer = new Answer(wire.receive().body());
            while (true) {
                byte[] question = wire.receive().body();
                byte[] body;
                char kind = 'a';
                try {
                    body = answer.to(question);
                } catch (Throwable thrown) {  // also an Error: an answer may throw anything
                    kind = 'e';
                    body = message(thrown);
                }
                wire.send(kind, body);
            }
        } catch (EOFException end) {
            Runtime.getRuntime().halt(0);
        }
    }

    private static byte[] message(Throwable thrown) {
        try {
            String text = String.valueOf(thrown);
            return text.substring(0, Math.min(400, text.length())).getBytes();
        } catch (Throwable another) {
            return thrown.getClass().getName().getBytes();
        }
    }

    /** The result, followed by the arguments if the call changed them. */
    private byte[] to(byte[] question) throws Throwable {
        Object[] parts = Values.decode(question);  // class, method, instance, arguments...
        Object[] given = Arrays.copyOfRange(parts, 3, parts.length);
        byte[] before = Values.encode(given);
        Object result = call((String) parts[0], (String) parts[1], (Integer) parts[2], given);
        if (Arrays.equals(before, Values.encode(given))) return Values.encode(new Object[] {result});
        Object[] all = new Object[given.length + 1];
        all[0] = result;
        System.arraycopy(given, 0, all, 1, given.length);
        return Values.encode(all);
    }

    private Object call(String className, String name, int instance, Object[] given) throws Throwable {
        Class<?> type = classes.loadClass(className);
        Method method = Arrays.stream(type.getDeclaredMethods())
            .filter(found -> found.getName().equals(name) && takes(found, given) && !Modifier.isPrivate(found.getModifiers())).findFirst()
            .or(() -> Arrays.stream(type.getMethods()).filter(found -> found.getName().equals(name) && takes(found, given)).findFirst())
            .orElseThrow(() -> new NoSuchMethodException(className + "." + name));
        method.setAccessible(true);
        try {
            if (Modifier.isStatic(method.getModifiers())) return method.invoke(null, given);
            if (instance < 0) throw new NoSuchMethodException(className + "." + name + " is not static");
            if (!instances.containsKey(instance)) {
                var made = type.getDeclaredConstructor();
                made.setAccessible(true);
                instances.put(instance, made.newInstance());
            }
            return method.invoke(instances.get(instance), given);
        } catch (InvocationTargetException error) {
            throw error.getCause();
        }
    }

    private static boolean takes(Method method, Object[] given) {
        Class<?>[] types = method.getParameterTypes();
        if (types.length != given.length) return false;
        for (int n = 0; n < types.length; n++) {
            if (given[n] == null ? types[n].isPrimitive() : !types[n].isPrimitive() && !types[n].isInstance(given[n])) return false;
        }
        return true;
    }
}
