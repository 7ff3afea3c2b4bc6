package mft;

import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.DataInputStream;
import java.io.DataOutputStream;
import java.io.IOException;
import java.lang.reflect.Array;
import java.math.BigDecimal;
import java.math.BigInteger;
import java.nio.charset.StandardCharsets;
import java.util.*;
import java.util.regex.Pattern;

/**
 * Values as bytes and back: numbers, strings and containers, decoded as classes of the Java library. An object of the answer's own class
 * crosses as the list, map or set that it is; any other one arrives as an object that equals nothing.
 */
final class Values {
    private static final Pattern ARRAY = Pattern.compile("\\[+([ZBCSIJFD]|Ljava\\.(lang\\.(String|Integer|Long|Double|Boolean|Character|Object|Number)|util\\.(List|Map|Set));)");
    private static final int DEEPEST = 100;

    private Values() { }

    static byte[] encode(Object[] values) throws IOException {
        ByteArrayOutputStream bytes = new ByteArrayOutputStream();
        DataOutputStream out = new DataOutputStream(bytes);
        out.writeInt(values.length);
        for (Object value : values) put(out, value, 0);
        return bytes.toByteArray();
    }

    static Object[] decode(byte[] bytes) throws IOException {
        DataInputStream in = new DataInputStream(new ByteArrayInputStream(bytes));
        Object[] values = new Object[count(in)];
        for (int n = 0; n < values.length; n++) values[n] = take(in, 0);
        return values;
    }

    private static void put(DataOutputStream out, Object value, int depth) throws IOException {
        if (depth > DEEPEST) throw new IOException("a value of more than " + DEEPEST + " levels");
        if (value == null) out.writeByte('0');
        else if (value instanceof Boolean x) { out.writeByte('Z'); out.writeBoolean(x); }
        else if (value instanceof Integer x) { out.writeByte('I'); out.writeInt(x); }
        else if (value instanceof Long x) { out.writeByte('J'); out.writeLong(x); }
        else if (value instanceof Double x) { out.writeByte('D'); out.writeDouble(x); }
        else if (value instanceof Float x) { out.writeByte('F'); out.writeFloat(x); }
        else if (value instanceof Character x) { out.writeByte('C'); out.writeChar(x); }
        else if (value instanceof Short x) { out.writeByte('S'); out.writeShort(x); }
        else if (value instanceof Byte x) { out.writeByte('B'); out.writeByte(x); }
        else if (value instanceof String x) { out.writeByte(x.intern() == x ? 's' : 't'); text(out, x); }
        else if (value instanceof List<?> x) { out.writeByte('L'); kind(out, x); items(out, x, depth); }
        else if (value instanceof Map<?, ?> x) { out.writeByte('M'); kind(out, x); items(out, pairs(x), depth); }
        else if (value instanceof Collection<?> x) { out.writeByte(x instanceof Set ? 'E' : 'Q'); kind(out, x); items(out, x, depth); }
        else if (value instanceof Optional<?> x) { out.writeByte('O'); put(out, x.orElse(null), depth + 1); }
        else if (value.getClass().isArray()) { out.writeByte('A'); text(out, value.getClass().getName()); items(out, array(value), depth); }
        else if (value.getClass() == BigInteger.class) { out.writeByte('G'); text(out, value.toString()); }
        else if (value.getClass() == BigDecimal.class) { out.writeByte('H'); text(out, value.toString()); }
        else if (value instanceof Map.Entry<?, ?> x) { out.writeByte('P'); put(out, x.getKey(), depth + 1); put(out, x.getValue(), depth + 1); }
        else out.writeByte('?');
    }

    private static void text(DataOutputStream out, String value) throws IOException {
        byte[] bytes = value.getBytes(StandardCharsets.UTF_16BE);
        out.writeInt(bytes.length);
        out.write(bytes);
    }

    private static void items(DataOutputStream out, Collection<?> items, int depth) throws IOException {
        List<Object> copy = new ArrayList<>(items);
        out.writeInt(copy.size());
        for (Object item : copy) put(out, item, depth + 1);
    }

    private static List<Object> pairs(Map<?, ?> map) {
        List<Object> flat = new ArrayList<>();
        map.forEach((key, value) -> { flat.add(key); flat.add(value); });
        return flat;
    }

    private static List<Object> array(Object array) {
        List<Object> items = new ArrayList<>();
        for (int n = 0; n < Array.getLength(array); n++) items.add(Array.get(array, n));
        return items;
    }

    /** The class of the Java library that a container is of, or is closest to. */
    private static void kind(DataOutputStream out, Object container) throws IOException {
        String name = container.getClass().getName();
        boolean fixed = name.equals("java.util.Arrays$ArrayList");
        boolean immutable = name.startsWith("java.util.ImmutableCollections") || name.startsWith("java.util.Collections$");
        boolean linked = container instanceof LinkedList || container instanceof LinkedHashMap || container instanceof LinkedHashSet;
        boolean sorted = container instanceof SortedMap || container instanceof SortedSet;
        boolean hashed = container instanceof HashMap || container instanceof HashSet || !(container instanceof Map || container instanceof Set);
        out.writeByte(fixed ? 'f' : immutable ? 'i' : linked ? 'l' : sorted ? 's' : hashed ? 'h' : 'l');
    }

    private static int count(DataInputStream in) throws IOException {
        int count = in.readInt();
        if (count < 0 || count > in.available()) throw new IOException("a message is too short");  // every item takes at least a byte
        return count;
    }

    private static String text(DataInputStream in) throws IOException {
        return new String(in.readNBytes(count(in)), StandardCharsets.UTF_16BE);
    }

    private static List<Object> items(DataInputStream in, int depth) throws IOException {
        List<Object> items = new ArrayList<>();
        for (int left = count(in); left > 0; left--) items.add(take(in, depth + 1));
        return items;
    }

    private static Object take(DataInputStream in, int depth) throws IOException {
        if (depth > DEEPEST) throw new IOException("a value of more than " + DEEPEST + " levels");
        char tag = (char) in.readByte();
        switch (tag) {
            case '0': return null;
            case 'Z': return in.readBoolean();
            case 'I': return in.readInt();
            case 'J': return in.readLong();
            case 'D': return in.readDouble();
            case 'F': return in.readFloat();
            case 'C': return in.readChar();
            case 'S': return in.readShort();
            case 'B': return in.readByte();
            case 's': return text(in).intern();
            case 't': return text(in);
            case 'L': return list((char) in.readByte(), items(in, depth));
            case 'M': return map((char) in.readByte(), items(in, depth));
            case 'E': return set((char) in.readByte(), items(in, depth));
            case 'Q': in.readByte(); return new ArrayDeque<>(items(in, depth));
            case 'O': return Optional.ofNullable(take(in, depth + 1));
            case 'A': return array(text(in), items(in, depth));
            case 'G': return new BigInteger(text(in));
            case 'H': return new BigDecimal(text(in));
            case 'P': { Object key = take(in, depth + 1); return new AbstractMap.SimpleEntry<>(key, take(in, depth + 1)); }
            default: return new Object();
        }
    }

    private static List<Object> list(char kind, List<Object> items) {
        return switch (kind) {
            case 'f' -> Arrays.asList(items.toArray());
            case 'i' -> items.contains(null) ? Collections.unmodifiableList(items) : List.of(items.toArray());
            case 'l' -> new LinkedList<>(items);
            default -> items;
        };
    }

    private static Map<Object, Object> map(char kind, List<Object> flat) {
        Map<Object, Object> map = kind == 'l' ? new LinkedHashMap<>() : kind == 's' ? new TreeMap<>() : new HashMap<>();
        for (int n = 0; n + 1 < flat.size(); n += 2) map.put(flat.get(n), flat.get(n + 1));
        return kind == 'i' ? Collections.unmodifiableMap(map) : map;
    }

    private static Set<Object> set(char kind, List<Object> items) {
        Set<Object> set = kind == 'l' ? new LinkedHashSet<>(items) : kind == 's' ? new TreeSet<>(items) : new HashSet<>(items);
        return kind == 'i' ? Collections.unmodifiableSet(set) : set;
    }

    private static Object array(String name, List<Object> items) throws IOException {
        if (!ARRAY.matcher(name).matches()) return new Object();
        try {
            Object array = Array.newInstance(Class.forName(name).getComponentType(), items.size());
            for (int n = 0; n < items.size(); n++) Array.set(array, n, items.get(n));
            return array;
        } catch (ClassNotFoundException | IllegalArgumentException error) {
            throw new IOException("no such array");
        }
    }

    /** Copies into a container or an array of the tests what the candidate left in its copy. */
    @SuppressWarnings("unchecked")
    static void copyBack(Object here, Object there) {
        if (here instanceof List && there instanceof List<?> list) {
            List<Object> target = (List<Object>) here;
            if (target.size() == list.size()) for (int n = 0; n < list.size(); n++) target.set(n, list.get(n));
            else { target.clear(); target.addAll(list); }
        } else if (here instanceof Map && there instanceof Map<?, ?> map) {
            ((Map<Object, Object>) here).clear();
            ((Map<Object, Object>) here).putAll(map);
        } else if (here instanceof Collection && there instanceof Collection<?> items) {
            ((Collection<Object>) here).clear();
            ((Collection<Object>) here).addAll(items);
        } else if (here != null && there != null && here.getClass().isArray() && here.getClass() == there.getClass()) {
            System.arraycopy(there, 0, here, 0, Math.min(Array.getLength(here), Array.getLength(there)));
        }
    }
}
