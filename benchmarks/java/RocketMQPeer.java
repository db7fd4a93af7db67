import com.sun.management.OperatingSystemMXBean;
import java.io.BufferedReader;
import java.io.FileDescriptor;
import java.io.FileOutputStream;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.lang.management.ManagementFactory;
import java.net.URLDecoder;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Base64;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.TreeSet;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.Semaphore;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.atomic.AtomicLong;
import java.util.concurrent.atomic.AtomicReference;
import org.apache.rocketmq.acl.common.AclClientRPCHook;
import org.apache.rocketmq.acl.common.SessionCredentials;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.listener.ConsumeConcurrentlyStatus;
import org.apache.rocketmq.client.consumer.listener.ConsumeOrderlyStatus;
import org.apache.rocketmq.client.consumer.listener.MessageListenerConcurrently;
import org.apache.rocketmq.client.consumer.listener.MessageListenerOrderly;
import org.apache.rocketmq.client.consumer.rebalance.AllocateMessageQueueAveragely;
import org.apache.rocketmq.client.exception.MQClientException;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.client.producer.SendCallback;
import org.apache.rocketmq.client.producer.SendResult;
import org.apache.rocketmq.client.producer.SendStatus;
import org.apache.rocketmq.common.consumer.ConsumeFromWhere;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageAccessor;
import org.apache.rocketmq.common.message.MessageExt;
import org.apache.rocketmq.common.message.MessageQueue;
import org.apache.rocketmq.remoting.RPCHook;

/**
 * The official Java client, told what to do line by line: see benchmarks/rocketmq/peers/process.py.
 *
 * <p>One source for 4.9 and 5.x: what they have under different names is reached by reflection.
 */
public final class RocketMQPeer {
    private static final PrintStream OUT =
            new PrintStream(new FileOutputStream(FileDescriptor.out), false, StandardCharsets.UTF_8);

    private final String nameServer;
    private final RPCHook signature;
    private final DefaultMQProducer producer;
    private final List<Message> batch = new ArrayList<>();
    private DefaultMQPushConsumer consumer;
    private Thread watcher;

    public static void main(String[] arguments) throws Exception {
        RocketMQPeer peer = new RocketMQPeer(parse(String.join("&", arguments)));
        say("\"ready\":true");
        BufferedReader lines = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line = lines.readLine(); line != null; line = lines.readLine()) {
            Map<String, String> told = parse(line);
            try {
                peer.obey(told);
            } catch (Exception error) {
                say("\"error\":" + quoted(error.toString()));
            }
        }
        peer.stop();
        peer.producer.shutdown();
        System.exit(0);
    }

    private RocketMQPeer(Map<String, String> told) throws Exception {
        nameServer = told.get("name_server");
        String key = told.get("access_key");
        signature = key == null ? null : new AclClientRPCHook(new SessionCredentials(key, told.get("secret_key")));
        producer = new DefaultMQProducer("peer-producers", signature);
        producer.setNamesrvAddr(nameServer);
        producer.setSendMsgTimeout(20_000);
        String type = told.get("compression");
        if (type != null) {
            compressWith(type);
        }
        producer.start();
    }

    @SuppressWarnings({"unchecked", "rawtypes"})
    private void compressWith(String type) throws ReflectiveOperationException {
        Class<? extends Enum> types =
                (Class<? extends Enum>) Class.forName("org.apache.rocketmq.common.compression.CompressionType");
        producer.getClass().getMethod("setCompressType", types).invoke(producer, Enum.valueOf(types, type));
    }

    private void obey(Map<String, String> told) throws Exception {
        switch (told.get("do")) {
            case "send" -> send(told);
            case "add" -> {
                batch.add(message(told));
                say("\"added\":" + batch.size());
            }
            case "flush" -> {
                SendResult result = producer.send(new ArrayList<>(batch));
                batch.clear();
                say("\"sent\":" + sent(result));
            }
            case "consume" -> consume(told);
            case "stop" -> {
                stop();
                say("\"stopped\":true");
            }
            case "rate-send" -> rateOfSends(told);
            case "rate-consume" -> rateOfConsuming(told);
            default -> throw new IllegalArgumentException("unknown: " + told.get("do"));
        }
    }

    // --- messages ---

    private static Message message(Map<String, String> told) {
        Message message = new Message(told.get("topic"), Base64.getDecoder().decode(told.getOrDefault("body", "")));
        if (told.containsKey("tag")) {
            message.setTags(told.get("tag"));
        }
        if (told.containsKey("keys")) {
            message.setKeys(told.get("keys"));
        }
        if (told.containsKey("level")) {
            message.setDelayTimeLevel(Integer.parseInt(told.get("level")));
        }
        if (told.containsKey("deliver")) {
            MessageAccessor.putProperty(message, "TIMER_DELIVER_MS", told.get("deliver"));
        }
        told.forEach((name, value) -> {
            if (name.startsWith("p.")) {
                message.putUserProperty(name.substring(2), value);
            }
        });
        return message;
    }

    private void send(Map<String, String> told) throws Exception {
        Message message = message(told);
        String shard = told.get("shard");
        SendResult result = shard == null
                ? producer.send(message)
                : producer.send(message, (queues, one, key) -> queues.get(Math.floorMod(key.hashCode(), queues.size())), shard);
        say("\"sent\":" + sent(result));
    }

    private static String sent(SendResult result) {
        MessageQueue queue = result.getMessageQueue();
        return "{\"id\":" + quoted(result.getMsgId()) + ",\"status\":" + quoted(result.getSendStatus().name())
                + ",\"broker\":" + quoted(queue.getBrokerName()) + ",\"queue\":" + queue.getQueueId()
                + ",\"offset\":" + result.getQueueOffset() + "}";
    }

    private static String received(MessageExt message) {
        Map<String, String> properties = new TreeMap<>(message.getProperties());
        // Null when it is empty.
        byte[] body = message.getBody() == null ? new byte[0] : message.getBody();
        StringBuilder text = new StringBuilder("{\"topic\":").append(quoted(message.getTopic()))
                .append(",\"id\":").append(quoted(message.getMsgId()))
                .append(",\"tag\":").append(quoted(message.getTags()))
                .append(",\"keys\":").append(quoted(message.getKeys()))
                .append(",\"body\":").append(quoted(Base64.getEncoder().encodeToString(body)))
                .append(",\"broker\":").append(quoted(message.getBrokerName()))
                .append(",\"queue\":").append(message.getQueueId())
                .append(",\"offset\":").append(message.getQueueOffset())
                .append(",\"reconsumed\":").append(message.getReconsumeTimes())
                .append(",\"time\":").append(System.currentTimeMillis() / 1e3)
                .append(",\"properties\":{");
        String separator = "";
        for (Map.Entry<String, String> one : properties.entrySet()) {
            text.append(separator).append(quoted(one.getKey())).append(':').append(quoted(one.getValue()));
            separator = ",";
        }
        return text.append("}}").toString();
    }

    // --- consuming ---

    private DefaultMQPushConsumer consumerOf(Map<String, String> told) throws MQClientException {
        DefaultMQPushConsumer made =
                new DefaultMQPushConsumer(told.get("group"), signature, new AllocateMessageQueueAveragely());
        made.setNamesrvAddr(nameServer);
        made.setConsumeFromWhere(ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET);
        made.subscribe(told.get("topic"), told.getOrDefault("tag", "*"));
        return made;
    }

    /** Hands messages out until told to stop; those with fewer than "fail" earlier attempts fail. */
    private void consume(Map<String, String> told) throws Exception {
        for (int attempt = 1; consumer == null; attempt++) {
            DefaultMQPushConsumer made = handing(told);
            try {
                made.start();
                consumer = made;
            } catch (MQClientException | IllegalStateException busy) {
                // Its own 3 seconds for an answer, which a loaded machine needs.
                made.shutdown();
                if (attempt == 10) {
                    throw busy;
                }
            }
        }
        say("\"consuming\":true");
        watcher = new Thread(() -> watch(consumer, told.get("topic")));
        watcher.setDaemon(true);
        watcher.start();
    }

    private DefaultMQPushConsumer handing(Map<String, String> told) throws MQClientException {
        int failing = Integer.parseInt(told.getOrDefault("fail", "0"));
        // Of the concurrent listener: 0 lets the broker choose, -1 is a dead letter at once.
        int level = Integer.parseInt(told.getOrDefault("level", "0"));
        DefaultMQPushConsumer made = consumerOf(told);
        if (told.containsKey("max_reconsume")) {
            made.setMaxReconsumeTimes(Integer.parseInt(told.get("max_reconsume")));
        }
        if (told.containsKey("ordered")) {
            made.registerMessageListener((MessageListenerOrderly) (messages, context) -> {
                messages.forEach(one -> say("\"message\":" + received(one)));
                context.setSuspendCurrentQueueTimeMillis(100);
                return messages.get(0).getReconsumeTimes() < failing
                        ? ConsumeOrderlyStatus.SUSPEND_CURRENT_QUEUE_A_MOMENT
                        : ConsumeOrderlyStatus.SUCCESS;
            });
        } else {
            made.registerMessageListener((MessageListenerConcurrently) (messages, context) -> {
                messages.forEach(one -> say("\"message\":" + received(one)));
                context.setDelayLevelWhenNextConsume(level);
                return messages.get(0).getReconsumeTimes() < failing
                        ? ConsumeConcurrentlyStatus.RECONSUME_LATER
                        : ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
            });
        }
        return made;
    }

    /** Says which queues this member has whenever that changes. */
    private static void watch(DefaultMQPushConsumer watched, String topic) {
        TreeSet<String> last = null;
        while (!Thread.interrupted()) {
            TreeSet<String> now = new TreeSet<>();
            for (MessageQueue queue : watched.getDefaultMQPushConsumerImpl().getRebalanceImpl().getProcessQueueTable().keySet()) {
                if (queue.getTopic().equals(topic)) {
                    now.add("[" + quoted(queue.getBrokerName()) + "," + queue.getQueueId() + "]");
                }
            }
            if (!now.equals(last)) {
                say("\"queues\":[" + String.join(",", now) + "]");
                last = now;
            }
            try {
                TimeUnit.MILLISECONDS.sleep(50);
            } catch (InterruptedException stopped) {
                return;
            }
        }
    }

    private void stop() throws InterruptedException {
        if (consumer != null) {
            watcher.interrupt();
            watcher.join();
            consumer.shutdown();
            consumer = null;
        }
    }

    // --- rates ---

    private void rateOfSends(Map<String, String> told) throws Exception {
        String topic = told.get("topic");
        int count = Integer.parseInt(told.get("count"));
        int window = Integer.parseInt(told.getOrDefault("window", "1"));
        byte[] body = new byte[Integer.parseInt(told.get("size"))];
        Arrays.fill(body, (byte) 'x');
        AtomicInteger failed = new AtomicInteger();
        String mode = told.get("mode");
        int warm = Integer.parseInt(told.getOrDefault("warm", "0"));
        if (warm > 0) {
            sendAll(mode, topic, body, warm, window, failed);
            failed.set(0);
        }
        Measure measure = new Measure();
        sendAll(mode, topic, body, count, window, failed);
        say(measure.figure(count) + ",\"failed\":" + failed.get());
    }

    private void sendAll(String mode, String topic, byte[] body, int count, int window, AtomicInteger failed)
            throws Exception {
        if (mode.equals("sync")) {
            for (int number = 0; number < count; number++) {
                check(producer.send(new Message(topic, body)), failed);
            }
        } else if (mode.equals("batch")) {
            for (int number = 0; number < count; number += window) {
                List<Message> messages = new ArrayList<>();
                for (int one = 0; one < Math.min(window, count - number); one++) {
                    messages.add(new Message(topic, body));
                }
                check(producer.send(messages), failed);
            }
        } else {
            sendAsync(topic, body, count, window, failed);
        }
    }

    private void sendAsync(String topic, byte[] body, int count, int window, AtomicInteger failed) throws Exception {
        Semaphore room = new Semaphore(window);
        SendCallback callback = new SendCallback() {
            @Override
            public void onSuccess(SendResult result) {
                check(result, failed);
                room.release();
            }

            @Override
            public void onException(Throwable error) {
                failed.incrementAndGet();
                room.release();
            }
        };
        for (int number = 0; number < count; number++) {
            room.acquire();
            producer.send(new Message(topic, body), callback);
        }
        room.acquire(window);
    }

    private static void check(SendResult result, AtomicInteger failed) {
        if (result.getSendStatus() != SendStatus.SEND_OK) {
            failed.incrementAndGet();
        }
    }

    /** From the first message after "warm" others to the last of "count", with the client's own settings. */
    private void rateOfConsuming(Map<String, String> told) throws Exception {
        int warm = Integer.parseInt(told.getOrDefault("warm", "0"));
        int count = Integer.parseInt(told.get("count"));
        AtomicLong seen = new AtomicLong();
        CountDownLatch done = new CountDownLatch(1);
        AtomicReference<Measure> measure = new AtomicReference<>();
        AtomicReference<String> figure = new AtomicReference<>();
        DefaultMQPushConsumer counting = consumerOf(told);
        counting.registerMessageListener((MessageListenerConcurrently) (messages, context) -> {
            long number = seen.incrementAndGet();
            if (number == warm + 1) {
                measure.set(new Measure());
            } else if (number == warm + count) {
                figure.set(measure.get().figure(count - 1));
                done.countDown();
            }
            return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
        });
        counting.start();
        boolean ended = done.await(Integer.parseInt(told.getOrDefault("patience", "120")), TimeUnit.SECONDS);
        counting.shutdown();
        if (!ended) {
            throw new IllegalStateException("handled " + seen.get() + " of " + count);
        }
        say(figure.get());
    }

    private static final class Measure {
        private final long began = System.nanoTime();
        private final long cpu = used();

        private static long used() {
            return ((OperatingSystemMXBean) ManagementFactory.getOperatingSystemMXBean()).getProcessCpuTime();
        }

        String figure(int count) {
            return "\"count\":" + count + ",\"seconds\":" + (System.nanoTime() - began) / 1e9
                    + ",\"cpu\":" + (used() - cpu) / 1e9;
        }
    }

    // --- lines ---

    private static Map<String, String> parse(String line) {
        Map<String, String> found = new HashMap<>();
        for (String part : line.split("&")) {
            int equals = part.indexOf('=');
            if (equals > 0) {
                found.put(decoded(part.substring(0, equals)), decoded(part.substring(equals + 1)));
            }
        }
        return found;
    }

    private static String decoded(String text) {
        return URLDecoder.decode(text, StandardCharsets.UTF_8);
    }

    private static void say(String fields) {
        synchronized (OUT) {
            OUT.println("{" + fields + "}");
            OUT.flush();
        }
    }

    private static String quoted(String text) {
        if (text == null) {
            return "null";
        }
        StringBuilder made = new StringBuilder("\"");
        for (int index = 0; index < text.length(); index++) {
            char one = text.charAt(index);
            if (one == '"' || one == '\\') {
                made.append('\\').append(one);
            } else if (one < ' ') {
                made.append(String.format("\\u%04x", (int) one));
            } else {
                made.append(one);
            }
        }
        return made.append('"').toString();
    }
}
