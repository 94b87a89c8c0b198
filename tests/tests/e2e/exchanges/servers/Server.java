import com.sun.net.httpserver.HttpServer;
import java.net.InetSocketAddress;
import java.net.URLEncoder;
import java.nio.charset.StandardCharsets;
import java.util.concurrent.Executors;

/** As the JDK's own server does. */
class Server {
  public static void main(String[] arguments) throws Exception {
    for (String port : arguments) {
      serve(Integer.parseInt(port));
    }
    System.out.println("listening");
  }

  private static void serve(int port) throws Exception {
    HttpServer server = HttpServer.create(new InetSocketAddress(port), 0);
    server.setExecutor(Executors.newCachedThreadPool());
    server.createContext("/", exchange -> {
      byte[] body = exchange.getRequestBody().readAllBytes();
      String path = exchange.getRequestURI().getPath();
      boolean head = exchange.getRequestMethod().equals("HEAD");
      String target = exchange.getRequestURI().toString();
      exchange.getResponseHeaders().set("X-Target", URLEncoder.encode(target, StandardCharsets.UTF_8));
      if (path.equals("/stream")) {
        exchange.sendResponseHeaders(200, 0);
        exchange.getResponseBody().write("one\n".getBytes());
        exchange.getResponseBody().flush();
        exchange.getResponseBody().write("two\n".getBytes());
      } else {
        byte[] answer = path.equals("/echo") ? body : "hello\n".getBytes();
        exchange.sendResponseHeaders(200, head || answer.length == 0 ? -1 : answer.length);
        if (!head) {
          exchange.getResponseBody().write(answer);
        }
      }
      exchange.close();
    });
    server.start();
  }
}
