import com.rabbitmq.client.Channel;
import com.rabbitmq.client.ConfirmCallback;
import com.rabbitmq.client.Connection;
import com.rabbitmq.client.ConnectionFactory;
import com.rabbitmq.client.MessageProperties;
import java.util.Arrays;
import java.util.Map;
import java.util.concurrent.ConcurrentNavigableMap;
import java.util.concurrent.ConcurrentSkipListMap;
import java.util.concurrent.Semaphore;

/** Publishes persistent messages with asynchronous confirms, as RabbitMQ's tutorial does, within a window. */
public final class Publisher {
    public static void main(String[] arguments) throws Exception {
        String queue = arguments[0];
        int count = Integer.parseInt(arguments[1]);
        int window = Integer.parseInt(arguments[2]);
        int size = Integer.parseInt(arguments[3]);
        // The default exchange, or a topic exchange of that name.
        String exchange = arguments.length > 4 ? arguments[4] : "";
        String key = exchange.isEmpty() ? queue : "";
        ConnectionFactory factory = new ConnectionFactory();
        factory.setUri(System.getenv("BENCH_AMQP_URL"));
        try (Connection connection = factory.newConnection(); Channel channel = connection.createChannel()) {
            channel.queueDeclare(queue, true, false, false, Map.of("x-queue-type", "quorum"));
            if (!exchange.isEmpty()) {
                channel.exchangeDeclare(exchange, "topic", true);
                channel.queueBind(queue, exchange, "#");
            }
            byte[] body = new byte[size];
            Arrays.fill(body, (byte) 'x');
            Semaphore room = new Semaphore(window);
            ConcurrentNavigableMap<Long, Boolean> unconfirmed = new ConcurrentSkipListMap<>();
            ConfirmCallback confirmed = (tag, multiple) -> {
                if (multiple) {
                    ConcurrentNavigableMap<Long, Boolean> all = unconfirmed.headMap(tag, true);
                    int many = all.size();
                    all.clear();
                    room.release(many);
                } else {
                    unconfirmed.remove(tag);
                    room.release();
                }
            };
            channel.addConfirmListener(confirmed, (tag, multiple) -> {
                System.err.println("refused");
                System.exit(1);
            });
            channel.confirmSelect();
            // The compiler of the JVM needs some thousand rounds.
            publish(channel, exchange, key, body, count / 2, window, room, unconfirmed);
            long began = System.nanoTime();
            publish(channel, exchange, key, body, count, window, room, unconfirmed);
            System.out.println(count * 1e9 / (System.nanoTime() - began));
        }
    }

    private static void publish(
            Channel channel,
            String exchange,
            String key,
            byte[] body,
            int count,
            int window,
            Semaphore room,
            Map<Long, Boolean> unconfirmed)
            throws Exception {
        for (int number = 0; number < count; number++) {
            room.acquire();
            unconfirmed.put(channel.getNextPublishSeqNo(), true);
            channel.basicPublish(exchange, key, true, MessageProperties.PERSISTENT_BASIC, body);
        }
        room.acquire(window);
        room.release(window);
    }
}
