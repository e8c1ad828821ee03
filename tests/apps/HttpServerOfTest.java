import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.net.InetSocketAddress;
import java.security.MessageDigest;
import java.util.ArrayDeque;
import java.util.HexFormat;
import java.util.concurrent.Executors;
import java.util.concurrent.atomic.AtomicLong;

/** HttpServerOfTest HOST PORT: /digest/TEXT, /total; eight threads, code that gets compiled, garbage. */
public class HttpServerOfTest {
	static final AtomicLong total = new AtomicLong();
	static final ArrayDeque<byte[]> garbage = new ArrayDeque<>();

	static byte[] answer(String path) throws Exception {
		if (path.equals("/total"))
			return Long.toString(total.get()).getBytes();
		total.incrementAndGet();
		synchronized (garbage) {
			garbage.add(new byte[50000]);
			if (garbage.size() > 400)
				garbage.remove();
		}
		byte[] text = path.substring("/digest/".length()).getBytes();
		return HexFormat.of().formatHex(MessageDigest.getInstance("SHA-256").digest(text)).getBytes();
	}

	static void handle(HttpExchange x) throws IOException {
		try (x) {
			byte[] body = answer(x.getRequestURI().getPath());
			x.sendResponseHeaders(200, body.length);
			x.getResponseBody().write(body);
		} catch (IOException e) {
			throw e;
		} catch (Exception e) {
			throw new IOException(e);
		}
	}

	public static void main(String[] args) throws Exception {
		HttpServer server = HttpServer.create(new InetSocketAddress(args[0], Integer.parseInt(args[1])), 50);
		server.createContext("/", HttpServerOfTest::handle);
		server.setExecutor(Executors.newFixedThreadPool(8));
		server.start();
	}
}
