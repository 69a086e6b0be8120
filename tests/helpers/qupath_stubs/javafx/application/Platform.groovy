package javafx.application

class Platform {
    static boolean running = false

    static void runLater(Runnable task) {
        running = true
        try {
            task.run()
        } finally {
            running = false
        }
    }
}
