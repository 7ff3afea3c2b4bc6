package mft;

import java.io.DataInputStream;
import java.io.EOFException;
import java.io.FileDescriptor;
import java.io.FileInputStream;
import java.io.FileOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.io.PrintStream;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.Arrays;

/** Frames on the socket to the worker, which is stdin and stdout of this process: Java cannot open other descriptors. */
final class Wire {
    static final int LARGEST = 64 << 20;
    private final DataInputStream in = new DataInputStream(new FileInputStream(FileDescriptor.in));
    private final OutputStream out = new FileOutputStream(FileDescriptor.out);

    record Frame(char kind, byte[] body) { }

    /** Takes both streams away from other code in this process: that code has no input, and prints to stderr. */
    Wire() {
        System.setIn(InputStream.nullInputStream());
        System.setOut(new PrintStream(new FileOutputStream(FileDescriptor.err), true));
    }

    void send(char kind, byte[] body) throws IOException {
        ByteBuffer frame = ByteBuffer.allocate(body.length + 5).order(ByteOrder.LITTLE_ENDIAN);
        out.write(frame.putInt(body.length + 1).put((byte) kind).put(body).array());
    }

    /** The next frame; EOFException when the worker closes the socket. */
    Frame receive() throws IOException {
        int size = Integer.reverseBytes(in.readInt());
        if (size <= 0 || size > LARGEST) throw new EOFException();
        byte[] frame = in.readNBytes(size);
        if (frame.length < size) throw new EOFException();
        return new Frame((char) frame[0], Arrays.copyOfRange(frame, 1, size));
    }
}
