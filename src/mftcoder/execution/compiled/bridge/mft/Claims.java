package mft;

/** What a claim of the tests expects, and something else when this claim is the negative control. */
public final class Claims {
    /** Twice the number of the claim to change, and one more for upwards. */
    static int change = -1;
    static boolean met;

    private Claims() { }

    private static int wayOf(int claim) {
        if (change < 0 || change / 2 != claim) return 0;
        met = true;
        return change % 2 == 0 ? -1 : 1;
    }

    public static boolean holds(int claim, boolean value) { return value != (wayOf(claim) != 0); }
    public static boolean expected(int claim, boolean value) { return value != (wayOf(claim) != 0); }
    public static int expected(int claim, int value) { int way = wayOf(claim); return value * (1 + 2 * way) + way * 1_000_000_007; }
    public static long expected(int claim, long value) { int way = wayOf(claim); return value * (1 + 2 * way) + way * 1_000_000_000_000_000_007L; }
    public static double expected(int claim, double value) { return far(wayOf(claim), value); }
    public static float expected(int claim, float value) { return (float) far(wayOf(claim), value); }
    public static char expected(int claim, char value) { return wayOf(claim) == 0 ? value : (char) (value ^ 1); }
    public static String expected(int claim, String value) { return wayOf(claim) == 0 ? value : value + "?"; }

    private static double far(int way, double value) { return way == 0 ? value : value + way * (1e18 + 2 * Math.abs(value)); }
}
