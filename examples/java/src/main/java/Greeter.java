import boxlite.ApiClient;
import boxlite.ApiException;
import boxlite.JSON;
import boxlite.api.BoxesApi;
import boxlite.api.ExecutionsApi;
import boxlite.api.FilesApi;
import boxlite.model.CreateBoxRequest;
import boxlite.model.ErrorResponse;
import boxlite.model.StartExecutionRequest;
import com.google.gson.JsonObject;
import com.google.gson.JsonParser;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Base64;
import java.util.List;
import java.util.Map;
import okio.BufferedSource;

/** A box through its life, with the client that is generated for Java. */
public class Greeter {
    private static final String GREET = "echo What is your name?; until [ -e /tmp/name ]; do sleep 0.1; done; "
        + "read -r name < /tmp/name; echo Hello, $name.";

    public static void main(String[] arguments) throws ApiException, IOException {
        Map<String, String> environment = System.getenv();
        ApiClient client = new ApiClient()
            .setBasePath(environment.getOrDefault("BOXLITE_REST_URL", "http://127.0.0.1:8200"))
            .setReadTimeout(0); // output may be long in coming
        client.setBearerToken(environment.get("BOXLITE_API_KEY"));
        BoxesApi boxes = new BoxesApi(client);
        CreateBoxRequest wanted = new CreateBoxRequest().name("greeter-in-java").image("alpine:latest").start(true);
        String box = boxes.createBox(wanted, null).getBoxId();
        try {
            greet(client, box);
            boxes.createBox(wanted, null);
        } catch (ApiException exception) {
            ErrorResponse answer = JSON.getGson().fromJson(exception.getResponseBody(), ErrorResponse.class);
            System.out.println("error: " + answer.getError().getCode().getValue());
        } finally {
            boxes.removeBox(box, true, null);
        }
    }

    private static void greet(ApiClient client, String box) throws ApiException, IOException {
        ExecutionsApi executions = new ExecutionsApi(client);
        FilesApi files = new FilesApi(client);
        Path name = Files.writeString(Files.createTempFile("name", ""), "Ada\n");
        StartExecutionRequest command = new StartExecutionRequest().command("sh").args(List.of("-c", GREET));
        String execution = executions.startExecution(box, command, null).getExecutionId();
        try (var answer = executions.streamExecutionOutputCall(box, execution, null, null).execute()) {
            BufferedSource stream = answer.body().source();
            String event = "";
            for (String line = stream.readUtf8Line(); line != null; line = stream.readUtf8Line()) {
                if (line.startsWith("event: ")) {
                    event = line.substring("event: ".length());
                } else if (line.startsWith("data: ")) {
                    JsonObject data = JsonParser.parseString(line.substring("data: ".length())).getAsJsonObject();
                    if (event.equals("stdout")) {
                        String text = new String(Base64.getDecoder().decode(data.get("data").getAsString()));
                        System.out.print(text);
                        if (text.endsWith("?\n")) {
                            files.writeFile(box, "/tmp/name", name.toFile(), null, null, null, null);
                        }
                    } else if (event.equals("exit")) {
                        System.out.println("exit code: " + data.get("exit_code"));
                    }
                }
            }
        }
        Path file = files.readFile(box, "/tmp/name", null, null, null, null).toPath();
        System.out.print("file: " + Files.readString(file));
    }
}
