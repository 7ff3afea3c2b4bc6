package mft;

import java.util.*;
import java.util.stream.*;

/** Loads the classes that most answers load, so that the archive of a candidate's virtual machine contains them. */
final class Rehearsal {
    private Rehearsal() { }

    public static void main(String[] none) throws Exception {
        Object[] values = {1, 2L, 0.5, true, 'c', "text", List.of(1), new ArrayList<>(Arrays.asList(1, 2)), Map.of("a", 1), new TreeMap<>(), Set.of(1), Optional.of(1), new int[] {1}};
        Values.decode(Values.encode(values));
        List<Integer> numbers = IntStream.range(0, 3).boxed().sorted(Comparator.reverseOrder()).collect(Collectors.toList());
        StringBuilder text = new StringBuilder(String.join(",", "a b".split(" "))).append(numbers).append(String.format("%d", 1)).reverse();
        new Classes(Classes.bundle(Map.of("Nothing", new byte[0])));
        new Wire().send('v', text.toString().getBytes());
        try {
            Answer.class.getDeclaredMethod("to", byte[].class);
        } catch (ReflectiveOperationException error) {
            throw new IllegalStateException(error);
        }
    }
}
