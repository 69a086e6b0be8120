package com.google.gson

import groovy.json.JsonSlurper

// Gson reads every number as a double.
class Gson {
    def <T> T fromJson(String json, Class<T> type) { doubles(new JsonSlurper().parseText(json)) as T }

    private static doubles(value) {
        switch (value) {
            case Map: return value.collectEntries { [it.key, doubles(it.value)] }
            case List: return value.collect { doubles(it) }
            case Number: return value as double
            default: return value
        }
    }
}
