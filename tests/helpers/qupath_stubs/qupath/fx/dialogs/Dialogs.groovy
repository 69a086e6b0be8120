package qupath.fx.dialogs

import stage.Scene

class Dialogs {
    static <T> T showChoiceDialog(String title, String message, Collection<T> choices, T defaultChoice) {
        Scene.now.note('showChoiceDialog', [choices: choices as List, choice: defaultChoice])
        return Scene.now.facts.answer == null ? null : choices[Scene.now.facts.answer]
    }

    static boolean showConfirmDialog(String title, String text) {
        Scene.now.note('showConfirmDialog', [text: text])
        return Scene.now.facts.confirm
    }

    static void showErrorMessage(String title, String message) {
        Scene.now.note('showErrorMessage', [text: message])
    }

    static void showInfoNotification(String title, String message) {
        Scene.now.note('showInfoNotification', [text: message])
    }
}
