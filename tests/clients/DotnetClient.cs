// The .NET clients (.NET Core and Mono run the same file): DotnetClient.exe BASE PARALLEL; reads requests and writes what came of them as README.md here says.
using System;
using System.IO;
using System.Linq;
using System.Net;
using System.Net.Http;
using System.Security.Cryptography;
using System.Threading;

public static class DotnetClient {
    static readonly object output = new object();
    static HttpClient client;

    static byte[] Pattern(int size) {
        var b = new byte[size];
        for (int i = 0; i < size; i++) b[i] = (byte)(i % 251);
        return b;
    }

    static string Ask(string at, string[] words) {
        var body = words[3].Split(':');
        var request = new HttpRequestMessage(new HttpMethod(words[1]), at + words[2]);
        if (body[0] == "length") {
            request.Content = new ByteArrayContent(Pattern(int.Parse(body[1])));
        } else if (body[0] == "stream") {
            request.Content = new StreamContent(new MemoryStream(Pattern(int.Parse(body[1]))));
            request.Headers.TransferEncodingChunked = true;
        }
        foreach (var f in words.Skip(5).Where(f => !f.StartsWith("Expect:"))) {
            var pair = f.Split(new[] { ": " }, 2, StringSplitOptions.None);
            request.Headers.TryAddWithoutValidation(pair[0], pair[1]);
        }
        request.Headers.ConnectionClose = words[4].Contains("close");
        request.Headers.ExpectContinue = words[4].Contains("expect");
        using (var response = client.SendAsync(request).Result) {
            var got = response.Content.ReadAsByteArrayAsync().Result;
            var hash = string.Concat(SHA256.Create().ComputeHash(got).Select(b => b.ToString("x2")));
            var fields = response.Headers.Concat(response.Content.Headers).Select(f => f.Key.ToLower() + ": " + f.Value.First());
            return string.Join("\t", new[] { ((int)response.StatusCode).ToString(), got.Length.ToString(), hash }.Concat(fields));
        }
    }

    static void Work(string at) {
        for (;;) {
            string line;
            lock (client) line = Console.In.ReadLine();
            if (line == null) return;
            var words = line.Split('\t');
            string told;
            try {
                told = Ask(at, words);
            } catch (Exception e) {
                told = "error\t" + string.Join(" ", e.ToString().Split((char[])null, StringSplitOptions.RemoveEmptyEntries));
            }
            lock (output) {
                Console.Out.WriteLine(words[0] + "\t" + told);
                Console.Out.Flush();
            }
        }
    }

    public static void Main(string[] args) {
        int parallel = int.Parse(args[1]);
        ServicePointManager.DefaultConnectionLimit = parallel;
        client = new HttpClient(new HttpClientHandler { AutomaticDecompression = DecompressionMethods.GZip, UseCookies = false });
        var workers = Enumerable.Range(0, parallel).Select(_ => new Thread(() => Work(args[0]))).ToList();
        workers.ForEach(w => w.Start());
        workers.ForEach(w => w.Join());
    }
}
