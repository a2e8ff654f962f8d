// The Java clients: JavaClient http2|http1|url BASE PARALLEL; reads requests and writes what came of them as README.md here says.
// http2 is java.net.http as it comes: it asks each server for an upgrade to HTTP/2. `url` is the older HttpURLConnection.
import java.io.BufferedReader;
import java.io.ByteArrayInputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.InputStreamReader;
import java.io.OutputStream;
import java.net.HttpURLConnection;
import java.net.URI;
import java.net.URL;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.security.MessageDigest;
import java.time.Duration;
import java.util.List;
import java.util.Map;

public class JavaClient {
    static final BufferedReader input = new BufferedReader(new InputStreamReader(System.in));
    static HttpClient client;
    static String base;

    static byte[] pattern(int size) {
        byte[] b = new byte[size];
        for (int i = 0; i < size; i++) b[i] = (byte) (i % 251);
        return b;
    }

    static String told(int status, byte[] body, Map<String, List<String>> fields) throws Exception {
        StringBuilder out = new StringBuilder().append(status).append('\t').append(body.length).append('\t');
        for (byte b : MessageDigest.getInstance("SHA-256").digest(body)) out.append(String.format("%02x", b));
        fields.forEach((name, values) -> {
            if (name != null) out.append('\t').append(name.toLowerCase()).append(": ").append(String.join(", ", values));
        });
        return out.toString();
    }

    static String askClient(String[] words, String kind, int size) throws Exception {
        HttpRequest.BodyPublisher body = kind.equals("length") ? HttpRequest.BodyPublishers.ofByteArray(pattern(size))
            : kind.equals("stream") ? HttpRequest.BodyPublishers.ofInputStream(() -> new ByteArrayInputStream(pattern(size)))
            : HttpRequest.BodyPublishers.noBody();
        HttpRequest.Builder request = HttpRequest.newBuilder(URI.create(base + words[2])).method(words[1], body)
            .timeout(Duration.ofMinutes(1)).expectContinue(words[4].contains("expect"));
        for (int i = 5; i < words.length; i++)
            if (!words[i].startsWith("Expect:")) request.header(words[i].split(": ", 2)[0], words[i].split(": ", 2)[1]);
        if (words[4].contains("close")) request.header("Connection", "close");
        HttpResponse<byte[]> r = client.send(request.build(), HttpResponse.BodyHandlers.ofByteArray());
        return told(r.statusCode(), r.body(), r.headers().map());
    }

    static String askConnection(String[] words, String kind, int size) throws Exception {
        HttpURLConnection c = (HttpURLConnection) new URL(base + words[2]).openConnection();
        c.setRequestMethod(words[1]);
        c.setReadTimeout(60_000);
        for (int i = 5; i < words.length; i++) c.setRequestProperty(words[i].split(": ", 2)[0], words[i].split(": ", 2)[1]);
        if (words[4].contains("close")) c.setRequestProperty("Connection", "close");
        if (!kind.equals("-")) {
            c.setDoOutput(true);
            if (kind.equals("stream")) c.setChunkedStreamingMode(0);
            else c.setFixedLengthStreamingMode(size);
            try (OutputStream out = c.getOutputStream()) {
                out.write(pattern(size));
            } catch (IOException e) {
                // An early answer: getResponseCode() reads it.
            }
        }
        int status = c.getResponseCode();
        InputStream in = status >= 400 ? c.getErrorStream() : c.getInputStream();
        return told(status, in == null ? new byte[0] : in.readAllBytes(), c.getHeaderFields());
    }

    static void work(boolean connection) {
        for (;;) {
            String line;
            try {
                synchronized (input) {
                    line = input.readLine();
                }
            } catch (IOException e) {
                return;
            }
            if (line == null) return;
            String[] words = line.split("\t");
            String[] body = words[3].split(":");
            int size = body.length > 1 ? Integer.parseInt(body[1]) : 0;
            String out;
            try {
                out = connection ? askConnection(words, body[0], size) : askClient(words, body[0], size);
            } catch (Exception e) {
                out = "error\t" + String.valueOf(e).replaceAll("\\s+", " ");
            }
            synchronized (System.out) {
                System.out.println(words[0] + "\t" + out);
                System.out.flush();
            }
        }
    }

    public static void main(String[] args) throws Exception {
        base = args[1];
        int parallel = Integer.parseInt(args[2]);
        boolean connection = args[0].equals("url");
        if (!connection) {
            HttpClient.Builder b = HttpClient.newBuilder().followRedirects(HttpClient.Redirect.NORMAL);
            if (args[0].equals("http1")) b.version(HttpClient.Version.HTTP_1_1);
            client = b.build();
        }
        Thread[] workers = new Thread[parallel];
        for (int i = 0; i < parallel; i++) (workers[i] = new Thread(() -> work(connection))).start();
        for (Thread t : workers) t.join();
        System.exit(0);
    }
}
