package mft;

/** The expected values of claims, and another value for the claim that is the negative control. */
public final class Claims {
    /** 2 * claim to expect a smaller value, 2 * claim + 1 for a larger one. */
    static int change = -1;
    static boolean reached;

    private Claims() { }

    private static int directionOf(int claim) {
        if (change < 0 || change / 2 != claim) return 0;
        reached = true;
        return change % 2 == 0 ? -1 : 1;
    }

    public static boolean holds(int claim, boolean value) { return value != (directionOf(claim) != 0); }
    public static boolean expected(int claim, boolean value) { return value != (directionOf(claim) != 0); }
    public static int expected(int claim, int value) { int direction = directionOf(claim); return value * (1 + 2 * direction) + direction * 1_000_000_007; }
    public static long expected(int claim, long value) { int direction = directionOf(claim); return value * (1 + 2 * direction) + direction * 1_000_000_000_000_000_007L; }
    public static double expected(int claim, double value) { return far(directionOf(claim), value); }
    public static float expected(int claim, float value) { return (float) far(directionOf(claim), value); }
    public static char expected(int claim, char value) { return directionOf(claim) == 0 ? value : (char) (value ^ 1); }
    public static String expected(int claim, String value) { return directionOf(claim) == 0 ? value : value + "?"; }

    private static double far(int direction, double value) { return direction == 0 ? value : value + direction * (1e18 + 2 * Math.abs(value)); }
}
