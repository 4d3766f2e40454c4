import 'package:tillsync_client/sqlite.dart';
import 'package:tillsync_client/tillsync_client.dart';

// usage: dart run example/main.dart URL TOKEN
Future<void> main(List<String> args) async {
  final till = await Client.open([args[0]], token: args[1], disk: SqliteDisk('till-data'));
  final sale = await till.insert('sales', {'item': 'Café', 'price': 9.5});
  print('$sale is on the disk, and goes out when the cluster can be reached');
  await till.flush(const Duration(seconds: 30));
  await till.close();
}
